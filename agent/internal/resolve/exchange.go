package resolve

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// ask tries the servers in order, each of them once more if none of them answered, until one gives an answer.
func (r *Resolver) ask(ctx context.Context, q question, order []*server) (Answer, error) {
	last := &Error{Kind: NoServer, Name: q.name, Type: q.qtype}
	if len(order) > 0 {
		last.Kind = Timeout // if the time is over before the first one
	}
	for round := range 2 {
		again := false
		for _, s := range order {
			if ctx.Err() != nil {
				return Answer{}, r.ended(q, last)
			}
			began := r.o.Now()
			ans, err := r.try(ctx, q, s.addr)
			if err == nil {
				ans.Took = r.o.Now().Sub(began)
				r.note(s, nil, ans.Took)
				return ans, nil
			}
			err.Name, err.Type, err.Server = q.name, q.qtype, s.addr
			if ctx.Err() == nil {
				r.note(s, err, 0)
			}
			if err.Kind != Timeout || !telling(last.Kind) { // silence tells least
				last = err
			}
			again = again || err.Kind == Timeout || err.Kind == Mismatch || err.Kind == Malformed
		}
		if round == 0 && !again {
			break
		}
	}
	return Answer{}, r.ended(q, last)
}

// telling says whether a kind tells what a server did wrong.
func telling(k Kind) bool { return k != NoServer && k != Timeout }

// ended is the error of a lookup: the last one, unless it is over because the resolver was closed.
func (r *Resolver) ended(q question, last *Error) error {
	if r.ctx.Err() != nil {
		return &Error{Kind: Stopped, Name: q.name, Type: q.qtype}
	}
	return last
}

// try asks one server: with EDNS, without it if it does not know that, over TCP if the answer was cut.
func (r *Resolver) try(total context.Context, q question, s netip.AddrPort) (Answer, *Error) {
	ctx, cancel := context.WithTimeout(total, r.o.Timeout)
	defer cancel()
	m, e := r.exchange(ctx, q, s, "udp", true)
	if e == nil && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented) {
		m, e = r.exchange(ctx, q, s, "udp", false)
	}
	if e == nil && m.Truncated {
		// Its own time: the datagram may have taken most of it.
		ctx, cancel := context.WithTimeout(total, r.o.Timeout)
		m, e = r.exchange(ctx, q, s, "tcp", true)
		cancel()
		switch {
		case e != nil && e.Kind != Huge:
			return Answer{}, &Error{Kind: Truncated, Err: errors.New(e.Words())}
		case e == nil && m.Truncated:
			return Answer{}, &Error{Kind: Truncated, Err: errors.New("the answer over TCP was cut too")}
		}
	}
	if e != nil {
		return Answer{}, e
	}
	return r.read(q, m)
}

// exchange sends one question and waits for its answer.
func (r *Resolver) exchange(ctx context.Context, q question, s netip.AddrPort, network string, edns bool) (*dns.Msg, *Error) {
	r.mu.Lock()
	r.queries++
	r.mu.Unlock()
	var id [2]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, &Error{Kind: Network, Err: err}
	}
	m := new(dns.Msg)
	m.Id = binary.BigEndian.Uint16(id[:])
	m.RecursionDesired = true
	name := q.name
	if r.o.MixCase {
		name = mixCase(name)
	}
	m.Question = []dns.Question{{Name: name, Qtype: q.qtype, Qclass: dns.ClassINET}}
	if edns {
		m.SetEdns0(ednsSize, false)
	}
	out, err := m.Pack()
	if err != nil {
		return nil, &Error{Kind: BadName}
	}
	// A connected socket: the kernel lets in only what comes from the server's address and port.
	conn, err := r.o.Dial(ctx, network, s.String())
	if err != nil {
		return nil, netError(err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if network == "tcp" {
		return exchangeTCP(conn, out, m)
	}
	if _, err := conn.Write(out); err != nil {
		return nil, netError(err)
	}
	buf := make([]byte, 4096)
	var strange *Error
	for range maxStrange {
		n, err := conn.Read(buf)
		if err != nil {
			if strange != nil {
				return nil, strange
			}
			return nil, netError(err)
		}
		in, e := decode(buf[:n], m)
		if e == nil || e.Kind == Huge {
			return in, e
		}
		strange = e
	}
	return nil, strange
}

func exchangeTCP(conn net.Conn, out []byte, m *dns.Msg) (*dns.Msg, *Error) {
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)); err != nil {
		return nil, netError(err)
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, netError(err)
	}
	n := int(binary.BigEndian.Uint16(size[:]))
	if n > maxTCP {
		return nil, &Error{Kind: Huge, Err: fmt.Errorf("%d octets", n)}
	}
	buf := make([]byte, n)
	if _, err := io.ReadFull(conn, buf); err != nil {
		return nil, netError(err)
	}
	return decode(buf, m)
}

// decode reads a message and makes sure that it is the answer to asked. What its header says is looked at before
// anything is unpacked.
func decode(b []byte, asked *dns.Msg) (*dns.Msg, *Error) {
	if len(b) < 12 {
		return nil, &Error{Kind: Malformed, Err: fmt.Errorf("%d octets", len(b))}
	}
	be := binary.BigEndian
	const response, opcode = 1 << 15, 0xf << 11
	if be.Uint16(b) != asked.Id || be.Uint16(b[2:])&response == 0 || be.Uint16(b[2:])&opcode != 0 || be.Uint16(b[4:]) > 1 {
		return nil, &Error{Kind: Mismatch}
	}
	if be.Uint16(b[6:]) > maxRecords || be.Uint16(b[8:]) > maxRecords || be.Uint16(b[10:]) > maxRecords {
		if !questionIs(b, asked) {
			return nil, &Error{Kind: Mismatch}
		}
		return nil, &Error{Kind: Huge, Err: fmt.Errorf("%d records", be.Uint16(b[6:]))}
	}
	// Errors may come without the question (RFC 1035 does not ask for it, and old servers leave it out), answers may not.
	rcode := int(be.Uint16(b[2:]) & 0xf)
	if be.Uint16(b[4:]) == 0 {
		if rcode != dns.RcodeFormatError && rcode != dns.RcodeNotImplemented {
			return nil, &Error{Kind: Mismatch}
		}
	} else if !questionIs(b, asked) {
		return nil, &Error{Kind: Mismatch}
	}
	m := new(dns.Msg)
	if err := m.Unpack(b); err != nil {
		// A cut answer may end in the middle of a record: TCP will bring the whole.
		if m.Truncated && m.Id == asked.Id {
			return m, nil
		}
		return nil, &Error{Kind: Malformed, Err: fmt.Errorf("%.100q", err.Error())}
	}
	return m, nil
}

// questionIs compares the question of a message with the one that was asked, in its case too: a server copies it.
// Without 0x20 the question is in lower case, and servers that answer in another case are forgiven.
func questionIs(b []byte, asked *dns.Msg) bool {
	name, off, err := dns.UnpackDomainName(b, 12)
	if err != nil || len(b) < off+4 {
		return false
	}
	q, be := asked.Question[0], binary.BigEndian
	if be.Uint16(b[off:]) != q.Qtype || be.Uint16(b[off+2:]) != q.Qclass {
		return false
	}
	if q.Name == strings.ToLower(q.Name) {
		return strings.EqualFold(name, q.Name)
	}
	return name == q.Name
}

// mixCase gives every letter a random case (draft-vixie-dnsext-dns0x20). Escapes (\065) are left alone: they hold no letters.
func mixCase(name string) string {
	b := []byte(name)
	coins := make([]byte, len(b))
	_, _ = rand.Read(coins) // never fails (crypto/rand)
	for i, c := range b {
		if c >= 'a' && c <= 'z' && coins[i]&1 == 1 {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

func netError(err error) *Error {
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return &Error{Kind: Timeout}
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	return &Error{Kind: Network, Err: err}
}

// read makes an Answer of a message that answers q.
func (r *Resolver) read(q question, m *dns.Msg) (Answer, *Error) {
	switch m.Rcode {
	case dns.RcodeSuccess, dns.RcodeNameError:
	case dns.RcodeServerFailure:
		return Answer{}, &Error{Kind: ServFail}
	case dns.RcodeRefused:
		return Answer{}, &Error{Kind: Refused}
	default:
		word := dns.RcodeToString[m.Rcode]
		if word == "" {
			word = fmt.Sprintf("rcode %d", m.Rcode)
		}
		return Answer{}, &Error{Kind: Rcode, Err: errors.New(word)}
	}
	name, ttl := q.name, uint32(1<<31-1)
	if q.qtype != dns.TypeCNAME {
		for range maxChain {
			next := ""
			for _, rr := range m.Answer {
				if c, ok := rr.(*dns.CNAME); ok && rr.Header().Class == dns.ClassINET && strings.EqualFold(c.Hdr.Name, name) {
					next, ttl = strings.ToLower(c.Target), min(ttl, c.Hdr.Ttl)
					break
				}
			}
			if next == "" {
				break
			}
			name = next
		}
		for _, rr := range m.Answer {
			if c, ok := rr.(*dns.CNAME); ok && strings.EqualFold(c.Hdr.Name, name) {
				return Answer{}, &Error{Kind: Chain}
			}
		}
	}
	a := Answer{NXDomain: m.Rcode == dns.RcodeNameError} // RFC 6604: of the end of the chain
	if !a.NXDomain {
		for _, rr := range m.Answer {
			h := rr.Header()
			if h.Rrtype == q.qtype && h.Class == dns.ClassINET && strings.EqualFold(h.Name, name) {
				a.Records = append(a.Records, rr)
				ttl = min(ttl, h.Ttl)
			}
		}
		if len(a.Records) > 0 {
			a.TTL = r.clamp(ttl, false)
			return a, nil
		}
		a.NoData = true
	}
	// RFC 2308 5: the SOA of a zone around the name says how long that holds.
	negative, soa, ns := uint32(0), false, false
	for _, rr := range m.Ns {
		switch v := rr.(type) {
		case *dns.SOA:
			if dns.IsSubDomain(strings.ToLower(v.Hdr.Name), name) {
				soa, negative = true, min(v.Hdr.Ttl, v.Minttl)
			}
		case *dns.NS:
			ns = true
		}
	}
	if a.NoData && ns && !soa && !m.Authoritative && len(m.Answer) == 0 {
		return Answer{}, &Error{Kind: Lame}
	}
	a.TTL = r.clamp(min(negative, ttl), true)
	return a, nil
}
