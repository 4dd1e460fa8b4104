// Package zone serves the block table as a DNS list (RFC 5782), so that hosts without XDP, and Postfix's
// reject_rbl_client itself, can use what this host knows. It is an authoritative server for one zone, over UDP and
// TCP; it asks the table for every answer and keeps nothing.
//
//	7.2.0.192.bl.example.org.  A    127.0.0.3   (2 + the number of the cause: see Code)
//	7.2.0.192.bl.example.org.  TXT  "192.0.2.7 blocked by mx1: dictionary, until 2026-11-23T18:00:00Z"
//
// IPv6 addresses are asked for as 32 nibbles. 127.0.0.2 and ::ffff:127.0.0.2 are always listed (127.0.0.2),
// 127.0.0.1 and ::ffff:127.0.0.1 never (RFC 5782 section 5). Other names of the zone do not exist; a name that is
// the beginning of longer ones exists without records, so that resolvers that minimise their questions (RFC 9156)
// do not take the rest for missing (RFC 8020).
//
// It answers only whom it is told to, tells nobody the whole zone (no AXFR), and its answers are too small to be
// worth reflecting.
package zone

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"

	"github.com/mxshield/mxshield/agent/block"
)

// Listing is what the table says of a listed address.
type Listing struct {
	Prefix netip.Prefix
	Cause  block.Cause
	Until  time.Time // zero: no end
}

// Options configure a Server.
type Options struct {
	Zone   string         // for example bl.example.org, with or without the last dot
	Listen netip.AddrPort // UDP and TCP; port 0 takes one that is free
	// Clients may ask; none: loopback only. Others are refused (RFC 1035 REFUSED).
	Clients []netip.Prefix
	Node    string // this host's name, in TXT answers and the SOA
	// Lookup tells whether packets of an address are dropped now. It is called once per question, from many goroutines.
	Lookup func(netip.Addr) (Listing, bool)
	Now    func() time.Time
	Log    *slog.Logger
}

// TTL is how long an answer, yes or no, may be kept: an unblock is seen everywhere after this time.
const TTL = time.Minute

// Bounds of the server.
const (
	maxConns    = 256             // TCP connections at once
	idleTimeout = 5 * time.Second // of a TCP connection
	maxQueries  = 128             // on one TCP connection
)

// Code is the answer for a cause: 127.0.0.3 for the first of package block's causes (dictionary) up to 127.0.0.12
// (manual). 127.0.0.2 is the test entry's alone.
func Code(c block.Cause) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, 2 + byte(c)}) }

var testCode = netip.AddrFrom4([4]byte{127, 0, 0, 2})

// Stats counts questions since the start.
type Stats struct {
	Queries uint64 `json:"queries"`
	Listed  uint64 `json:"listed"`
	Refused uint64 `json:"refused"`
}

// Server is a zone being served.
type Server struct {
	o       Options
	zone    string // lower case, with the last dot
	ns      string
	packets net.PacketConn
	conns   net.Listener

	queries, listed, refused atomic.Uint64
}

// Listen opens the sockets. Run serves them.
func Listen(o Options) (*Server, error) {
	zone := strings.ToLower(dns.Fqdn(o.Zone))
	if err := CheckName(o.Zone); err != nil {
		return nil, err
	}
	if len(o.Clients) == 0 {
		o.Clients = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s := &Server{o: o, zone: zone, ns: "ns." + zone}
	// One port for both: with port 0 the kernel chooses for UDP, and TCP may find it taken.
	var err error
	for range 10 {
		if s.packets, err = net.ListenPacket("udp", o.Listen.String()); err != nil {
			return nil, fmt.Errorf("serve the DNS zone %s: %w", o.Zone, err)
		}
		at := s.packets.LocalAddr().(*net.UDPAddr).AddrPort()
		var l net.Listener
		if l, err = net.Listen("tcp", netip.AddrPortFrom(o.Listen.Addr(), at.Port()).String()); err == nil {
			s.conns = netutil.LimitListener(l, maxConns)
			s.o.Listen = netip.AddrPortFrom(o.Listen.Addr(), at.Port())
			return s, nil
		}
		s.packets.Close()
		if o.Listen.Port() != 0 {
			break
		}
	}
	return nil, fmt.Errorf("serve the DNS zone %s: %w", o.Zone, err)
}

// maxName leaves room for 32 nibbles and their dots (RFC 1035: 255 bytes on the wire).
const maxName = 253 - 64

// CheckName says what is wrong with the name of a zone.
func CheckName(name string) error {
	labels, ok := dns.IsDomainName(name)
	switch {
	case !ok || name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' || r == '\\' }):
		return fmt.Errorf("%.80q is no DNS name", name)
	case labels < 2:
		return fmt.Errorf("%.80q is a top-level domain", name)
	case len(name) > maxName:
		return fmt.Errorf("%.80q... is too long: %d bytes, and the nibbles of an address come in front", name, len(name))
	}
	return nil
}

// Addr is where the server listens.
func (s *Server) Addr() netip.AddrPort { return s.o.Listen }

// Stats returns the counters.
func (s *Server) Stats() Stats {
	return Stats{Queries: s.queries.Load(), Listed: s.listed.Load(), Refused: s.refused.Load()}
}

// Run serves until ctx ends. It returns an error only if a socket fails before that.
func (s *Server) Run(ctx context.Context) error {
	servers := []*dns.Server{
		{PacketConn: s.packets, Handler: s, ReadTimeout: idleTimeout, UDPSize: 1232},
		{Listener: s.conns, Handler: s, ReadTimeout: idleTimeout, WriteTimeout: idleTimeout, MaxTCPQueries: maxQueries, IdleTimeout: func() time.Duration { return idleTimeout }},
	}
	failed := make(chan error, len(servers))
	for _, srv := range servers {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		go func() { failed <- srv.ActivateAndServe() }()
		select {
		case <-started: // only what has started can be shut down
		case err := <-failed:
			failed <- err
		}
	}
	var err error
	left := len(servers)
	select {
	case <-ctx.Done():
	case err = <-failed:
		left--
	}
	for _, srv := range servers {
		_ = srv.Shutdown() // it says so if it was not running
	}
	s.packets.Close()
	s.conns.Close()
	for range left {
		<-failed
	}
	if ctx.Err() == nil {
		return fmt.Errorf("serve the DNS zone %s: %w", s.o.Zone, err)
	}
	return nil
}

// ServeDNS answers one question; the library has seen to it that there is exactly one.
func (s *Server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	s.queries.Add(1)
	m := s.answer(client(w.RemoteAddr()), q)
	if m.Rcode == dns.RcodeRefused {
		s.refused.Add(1)
	}
	size := dns.MinMsgSize
	if opt := q.IsEdns0(); opt != nil {
		size = max(size, int(opt.UDPSize()))
	}
	if _, tcp := w.RemoteAddr().(*net.TCPAddr); tcp {
		size = dns.MaxMsgSize
	}
	m.Truncate(min(size, dns.MaxMsgSize))
	if err := w.WriteMsg(m); err != nil && !errors.Is(err, net.ErrClosed) {
		s.o.Log.Debug("answer a DNS question", "error", err)
	}
}

func client(a net.Addr) netip.Addr {
	switch a := a.(type) {
	case *net.UDPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	case *net.TCPAddr:
		return a.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}

func (s *Server) answer(from netip.Addr, q *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.Rcode = dns.RcodeSuccess
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(1232, false)
		if opt.Version() != 0 {
			m.Rcode = dns.RcodeBadVers
			return m
		}
	}
	if q.Opcode != dns.OpcodeQuery {
		m.Rcode = dns.RcodeNotImplemented
		return m
	}
	if len(q.Question) != 1 {
		m.Rcode = dns.RcodeFormatError
		return m
	}
	question := q.Question[0]
	name := strings.ToLower(question.Name)
	mine := name == s.zone || strings.HasSuffix(name, "."+s.zone)
	if !mine || question.Qclass != dns.ClassINET && question.Qclass != dns.ClassANY ||
		question.Qtype == dns.TypeAXFR || question.Qtype == dns.TypeIXFR ||
		!slices.ContainsFunc(s.o.Clients, func(p netip.Prefix) bool { return p.Contains(from) }) {
		m.Rcode = dns.RcodeRefused
		return m
	}
	m.Authoritative = true
	records, exists := s.records(strings.TrimSuffix(strings.TrimSuffix(name, s.zone), "."), question.Name)
	for _, r := range records {
		if t := r.Header().Rrtype; t == question.Qtype || question.Qtype == dns.TypeANY {
			m.Answer = append(m.Answer, r)
		}
	}
	if len(m.Answer) == 0 {
		if !exists {
			m.Rcode = dns.RcodeNameError
		}
		m.Ns = []dns.RR{s.soa()} // what is not there may be remembered too (RFC 2308)
	}
	return m
}

// records returns what stands at a name below the zone, and whether the name exists.
func (s *Server) records(below, name string) (list []dns.RR, exists bool) {
	header := func(t uint16) dns.RR_Header {
		return dns.RR_Header{Name: name, Rrtype: t, Class: dns.ClassINET, Ttl: uint32(TTL / time.Second)}
	}
	switch below {
	case "":
		soa := s.soa()
		soa.Hdr.Name = name
		return []dns.RR{soa, &dns.NS{Hdr: header(dns.TypeNS), Ns: s.ns}}, true
	case "ns":
		a := s.o.Listen.Addr()
		switch {
		case a.IsUnspecified():
			return nil, true
		case a.Is4():
			return []dns.RR{&dns.A{Hdr: header(dns.TypeA), A: a.AsSlice()}}, true
		}
		return []dns.RR{&dns.AAAA{Hdr: header(dns.TypeAAAA), AAAA: a.AsSlice()}}, true
	}
	addr, part := parse(below)
	if !addr.IsValid() {
		return nil, part
	}
	code, text, ok := s.lookup(addr)
	if !ok {
		return nil, part
	}
	s.listed.Add(1)
	list = []dns.RR{&dns.A{Hdr: header(dns.TypeA), A: code.AsSlice()}, &dns.TXT{Hdr: header(dns.TypeTXT), Txt: []string{text}}}
	return list, true
}

// lookup answers for one address, which is as it was asked for: the test entries of IPv6 are IPv4-mapped.
func (s *Server) lookup(a netip.Addr) (code netip.Addr, text string, ok bool) {
	switch plain := a.Unmap(); {
	case plain == testCode:
		return testCode, "the test entry of RFC 5782", true
	case plain.IsLoopback():
		return netip.Addr{}, "", false
	}
	l, ok := s.o.Lookup(a.Unmap())
	if !ok {
		return netip.Addr{}, "", false
	}
	until := "until somebody unblocks it"
	if !l.Until.IsZero() {
		until = "until " + l.Until.UTC().Format(time.RFC3339)
	}
	text = fmt.Sprintf("%s blocked by %s: %s, %s", l.Prefix, s.o.Node, l.Cause, until)
	return Code(l.Cause), text[:min(len(text), 255)], true
}

func (s *Server) soa() *dns.SOA {
	return &dns.SOA{
		Hdr: dns.RR_Header{Name: s.zone, Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: uint32(TTL / time.Second)},
		Ns:  s.ns, Mbox: "postmaster." + s.zone,
		Serial:  uint32(s.o.Now().Unix()), // nobody transfers it
		Refresh: 3600, Retry: 600, Expire: 86400, Minttl: uint32(TTL / time.Second),
	}
}

// parse reads the labels in front of the zone: four octets or 32 nibbles, the last one first. It returns the address
// and whether the name exists even if nothing is listed there, because addresses may be listed below it.
func parse(below string) (a netip.Addr, part bool) {
	labels := strings.Split(below, ".")
	if len(labels) > 32 {
		return netip.Addr{}, false
	}
	nibbles, octets := true, len(labels) <= 4
	var v6 [16]byte
	var v4 [4]byte
	for i, l := range slices.Backward(labels) {
		at := len(labels) - 1 - i // of the address, from its front
		if n, ok := nibble(l); ok && nibbles {
			v6[at/2] |= n << (4 * (1 - at%2))
		} else {
			nibbles = false
		}
		if n, ok := octet(l); ok && octets {
			v4[at] = n
		} else {
			octets = false
		}
	}
	switch {
	case len(labels) == 32 && nibbles:
		return netip.AddrFrom16(v6), false
	case len(labels) == 4 && octets:
		return netip.AddrFrom4(v4), nibbles // 1.0.0.2 is 2.0.0.1, and the front of 2001::/16
	}
	return netip.Addr{}, nibbles || octets
}

func nibble(l string) (byte, bool) {
	if len(l) != 1 {
		return 0, false
	}
	switch c := l[0]; {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}

// octet accepts what the zone's names are made of: 0 to 255 without leading zeros.
func octet(l string) (byte, bool) {
	if len(l) == 0 || len(l) > 3 || len(l) > 1 && l[0] == '0' {
		return 0, false
	}
	n := 0
	for _, c := range []byte(l) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return byte(n), n <= 255
}
