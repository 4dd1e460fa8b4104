package bpf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"golang.org/x/sys/unix"
)

// The reference: what a packet must get, written from the design, without a look at the C. Slow and plain.
type reference struct {
	ports  map[uint16]uint8
	exempt []netip.Prefix
	rules  []Rule
	now    time.Time
	admit  *admitModel // nil: nothing is asked about new connections
}

const (
	protoHopByHop = 0
	protoICMP     = 1
	protoTCP      = 6
	protoUDP      = 17
	protoRouting  = 43
	protoFragment = 44
	protoESP      = 50
	protoAH       = 51
	protoDestOpts = 60
)

func (r reference) verdict(pkt []byte) Reason {
	if len(pkt) < 14 {
		return PassTruncated
	}
	ethertype, rest := binary.BigEndian.Uint16(pkt[12:]), pkt[14:]
	for range 2 {
		if ethertype == 0x8100 || ethertype == 0x88a8 || ethertype == 0x9100 {
			if len(rest) < 4 {
				return PassTruncated
			}
			ethertype, rest = binary.BigEndian.Uint16(rest[2:]), rest[4:]
		}
	}
	switch ethertype {
	case 0x0800:
		return r.ipv4(rest)
	case 0x86dd:
		return r.ipv6(rest)
	}
	return PassNotIP
}

func (r reference) ipv4(b []byte) Reason {
	if len(b) < 20 {
		return PassTruncated
	}
	ihl := int(b[0]&15) * 4
	switch {
	case b[0]>>4 != 4 || ihl < 20:
		return PassMalformed
	case b[9] != protoTCP:
		return PassNotTCP
	case binary.BigEndian.Uint16(b[6:])&0x1fff != 0:
		return PassFragment
	case len(b) < ihl+4:
		return PassTruncated
	}
	src := netip.AddrFrom4([4]byte(b[12:16]))
	return r.port(src, netip.AddrFrom4([4]byte(b[16:20])), b[ihl:])
}

func (r reference) ipv6(b []byte) Reason {
	if len(b) < 40 {
		return PassTruncated
	}
	if b[0]>>4 != 6 {
		return PassMalformed
	}
	src := netip.AddrFrom16([16]byte(b[8:24]))
	dst := netip.AddrFrom16([16]byte(b[24:40]))
	hidden := func() Reason {
		if r.isExempt(dst) {
			return PassExempt
		}
		if r.tables(src, ScopeAll).Drop() {
			return DropExtHeaders
		}
		return r.admit.admit(src, ScopeAll, PassExtHeaders)
	}
	next, rest := b[6], b[40:]
	for headers := 0; ; headers++ {
		size := 0
		switch next {
		case protoTCP:
			if len(rest) < 4 && headers == 0 {
				return PassTruncated
			} else if len(rest) < 4 {
				return hidden()
			}
			return r.port(src, dst, rest)
		case protoHopByHop, protoRouting, protoDestOpts, protoFragment, protoAH:
			if headers == 6 || len(rest) < 8 {
				return hidden()
			}
			size = 8 + 8*int(rest[1])
			if next == protoAH {
				size = 8 + 4*int(rest[1])
			}
			if next == protoFragment {
				if binary.BigEndian.Uint16(rest[2:])>>3 != 0 {
					return PassFragment
				}
				size = 8
			}
		default:
			return PassNotTCP
		}
		next = rest[0]
		rest = rest[min(size, len(rest)):]
	}
}

func (r reference) port(src, dst netip.Addr, tcp []byte) Reason {
	scope := r.ports[binary.BigEndian.Uint16(tcp[2:])]
	if scope == 0 {
		return PassOtherPort
	}
	if r.isExempt(dst) {
		return PassExempt
	}
	reason := r.tables(src, scope)
	if reason.Drop() || len(tcp) >= 14 && tcp[13]&0x12 != 0x02 {
		return reason
	}
	return r.admit.admit(src, scope, reason)
}

// tables: exact entries that have not ended are nothing special, the longest prefix decides. Ended ones do not exist.
// Ended CIDRs do.
func (r reference) tables(src netip.Addr, scope uint8) Reason {
	var best Rule
	found, sawEnded := false, false
	for _, rule := range r.rules {
		if !rule.Prefix.Contains(src) {
			continue
		}
		if r.isExact(rule) && r.ended(rule) {
			sawEnded = true
			continue
		}
		if !found || rule.Prefix.Bits() > best.Prefix.Bits() {
			best, found = rule, true
		}
	}
	switch {
	case !found && sawEnded:
		return PassExpired
	case !found:
		return PassNotBlocked
	case best.Scope == 0:
		return PassHole
	case r.ended(best):
		return PassExpired
	case best.Scope&scope == 0:
		return PassOutOfScope
	case r.isExact(best):
		return DropExact
	}
	return DropCIDR
}

func (r reference) isExempt(dst netip.Addr) bool {
	return slices.ContainsFunc(r.exempt, func(p netip.Prefix) bool { return p.Contains(dst) })
}

func (r reference) ended(rule Rule) bool { return !rule.Until.IsZero() && !r.now.Before(rule.Until) }

// isExact says whether a rule is in the exact table: blocks of an exact size with nothing longer under them.
func (r reference) isExact(rule Rule) bool {
	if rule.Scope == 0 {
		return false
	}
	if rule.Prefix.Addr().Is4() {
		return rule.Prefix.Bits() == 32
	}
	for _, other := range r.rules {
		if other.Prefix.Bits() > 64 && rule.Prefix.Contains(other.Prefix.Addr()) {
			return false
		}
	}
	return rule.Prefix.Bits() == 64
}

// lab is a shield with rules, both programs, and the reference beside it.
type lab struct {
	shield *Shield
	ref    reference
	progs  map[string]*ebpf.Program
	last   Counters
}

var labPorts = map[uint16]uint8{25: ScopeMX, 465: ScopeSubmission, 587: ScopeSubmission}

func newLab(t testing.TB, rules []Rule) *lab {
	t.Helper()
	return newLabWith(t, Options{}, rules)
}

func newLabWith(t testing.TB, opts Options, rules []Rule) *lab {
	t.Helper()
	s := openTest(t, opts)
	for _, r := range rules {
		if err := s.Set(r.Prefix, r.Scope, r.Until); err != nil {
			t.Fatal(err)
		}
	}
	l := &lab{shield: s, ref: reference{ports: labPorts, exempt: opts.Exempt, rules: rules, now: time.Now()},
		progs: map[string]*ebpf.Program{"xdp": s.xdp}}
	if tc, err := s.tc(); err != nil {
		t.Logf("tcx program left out: %v", err)
	} else {
		l.progs["tc"] = tc
	}
	var err error
	if l.last, err = s.Counters(); err != nil {
		t.Fatal(err)
	}
	return l
}

// tooShortForTC says that the kernel's test run refuses to make an skb of pkt: no byte behind the Ethernet header, or an
// IP header that is not all there. XDP's takes them.
func tooShortForTC(pkt []byte) bool {
	switch len(pkt) - 14 {
	case 0:
		return true
	default:
		switch binary.BigEndian.Uint16(pkt[12:]) {
		case 0x0800:
			return len(pkt)-14 < 20
		case 0x86dd:
			return len(pkt)-14 < 40
		}
	}
	return false
}

// run puts a packet through one program and returns the one reason it was counted under; false if it cannot.
func (l *lab) run(t testing.TB, name string, pkt []byte) (Reason, bool) {
	t.Helper()
	ret, err := l.progs[name].Run(&ebpf.RunOptions{Data: pkt})
	if name == "tc" && errors.Is(err, unix.EINVAL) && tooShortForTC(pkt) {
		return 0, false
	}
	if err != nil {
		t.Fatalf("%s: test run with %d bytes: %v", name, len(pkt), err)
	}
	now, err := l.shield.Counters()
	if err != nil {
		t.Fatal(err)
	}
	reason, n := Reason(0), uint64(0)
	for i := range now {
		if d := now[i] - l.last[i]; d > 0 {
			reason, n = Reason(i), n+d
		}
	}
	l.last = now
	if n != 1 {
		t.Fatalf("%s: packet was counted %d times: %x", name, n, pkt)
	}
	drop, pass := uint32(1), uint32(2)
	if name == "tc" {
		drop, pass = 2, ^uint32(0)
	}
	if reason.Drop() && ret != drop || !reason.Drop() && ret != pass {
		t.Fatalf("%s: verdict %d for reason %s: %x", name, int32(ret), reason, pkt)
	}
	return reason, true
}

// check compares both programs with the reference and returns the reason.
func (l *lab) check(t testing.TB, pkt []byte) Reason {
	t.Helper()
	var want Reason
	for name := range l.progs {
		got, ok := l.run(t, name, pkt)
		if !ok && l.ref.admit != nil {
			continue // it does not get as far as to be counted
		}
		if want = l.ref.verdict(pkt); ok && got != want {
			t.Errorf("%s: got %s, want %s: %x", name, got, want, pkt)
		}
	}
	return want
}

func (l *lab) expect(t testing.TB, want Reason, pkt []byte) {
	t.Helper()
	if got := l.check(t, pkt); got != want {
		t.Errorf("the reference itself says %s, want %s: %x", got, want, pkt)
	}
}

var past, future = time.Now().Add(-2 * time.Second), time.Now().Add(time.Hour)

func rule(prefix string, scope uint8, until time.Time) Rule {
	return Rule{Prefix: netip.MustParsePrefix(prefix), Scope: scope, Until: until}
}

var labRules = []Rule{
	rule("198.18.0.1/32", ScopeMX, future),
	rule("198.18.0.2/32", ScopeAll, time.Time{}),
	rule("198.18.0.3/32", ScopeAll, past),
	rule("198.18.0.4/32", ScopeSubmission, future),
	rule("198.18.1.0/24", ScopeAll, future),
	rule("198.18.1.7/32", 0, time.Time{}),    // a hole
	rule("198.18.1.9/32", ScopeAll, past),    // ended: the /24 decides
	rule("198.18.1.10/32", ScopeMX, future),  // narrower than its /24, and the longest
	rule("198.18.1.128/25", ScopeMX, future), // CIDR in CIDR
	rule("198.18.2.0/24", ScopeMX, past),
	rule("198.18.3.0/24", 0, time.Time{}),
	rule("2001:db8:0:1::/64", ScopeMX, future),
	rule("2001:db8:0:2::/64", ScopeAll, time.Time{}),
	rule("2001:db8:0:3::/64", ScopeAll, past),
	rule("2001:db8:0:4::/64", ScopeAll, future), // has something longer: in the trie
	rule("2001:db8:0:4::7/128", 0, time.Time{}),
	rule("2001:db8:0:4:8000::/65", ScopeMX, future),
	rule("2001:db8:1::/48", ScopeAll, future),
	rule("2001:db8:1:1::/64", 0, time.Time{}),
	rule("2001:db8:1:2::/64", ScopeAll, past),
	rule("2001:db8:2::/48", ScopeAll, past),
}

var labSources = []string{
	"198.18.0.1", "198.18.0.2", "198.18.0.3", "198.18.0.4", "198.18.0.5", "198.18.1.1", "198.18.1.7", "198.18.1.9",
	"198.18.1.10", "198.18.1.200", "198.18.2.1", "198.18.3.1", "192.0.2.1",
	"2001:db8:0:1::1", "2001:db8:0:1:ffff::1", "2001:db8:0:2::1", "2001:db8:0:3::1", "2001:db8:0:4::1", "2001:db8:0:4::7",
	"2001:db8:0:4:8000::1", "2001:db8:1::1", "2001:db8:1:1::1", "2001:db8:1:2::1", "2001:db8:2::1", "2001:db8:ffff::1",
}

var labExempt = prefixes("198.18.255.7/32", "198.18.240.0/22", "2001:db8:25::7/128", "2001:db8:26::/47", "2001:db8:99:8000::/49")

// frame describes a good packet.
type frame struct {
	src   string
	dst   string // default: an address of the mail host
	port  uint16
	tags  []uint16 // VLAN ethertypes
	ihl   int      // IPv4 words, default 5
	proto byte     // default TCP
	frag  uint16   // IPv4 flags and offset
	flags byte     // TCP; default SYN
	exts  []ext    // IPv6
}

type ext struct {
	typ  byte
	size int // bytes
	frag uint16
}

func (f frame) bytes() []byte {
	be := binary.BigEndian
	src := netip.MustParseAddr(f.src)
	if f.proto == 0 {
		f.proto = protoTCP
	}
	if f.dst == "" {
		f.dst = "198.18.255.1"
		if src.Is6() {
			f.dst = "2001:db8:ffff::25"
		}
	}
	dst := netip.MustParseAddr(f.dst)
	b := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}
	for _, tag := range f.tags {
		b = be.AppendUint16(b, tag)
		b = be.AppendUint16(b, 42)
	}
	l4 := make([]byte, 20)
	be.PutUint16(l4, 40000)
	be.PutUint16(l4[2:], f.port)
	l4[12], l4[13] = 5<<4, f.flags
	if f.flags == 0 {
		l4[13] = tcpSYN
	}
	if src.Is4() {
		ihl := max(f.ihl, 5)
		ip := make([]byte, ihl*4)
		ip[0] = 4<<4 | byte(ihl)
		be.PutUint16(ip[2:], uint16(len(ip)+len(l4)))
		be.PutUint16(ip[6:], f.frag)
		ip[8], ip[9] = 64, f.proto
		copy(ip[12:], src.AsSlice())
		copy(ip[16:], dst.AsSlice())
		for i := 20; i < len(ip); i++ {
			ip[i] = 1 // NOP
		}
		var sum uint32
		for i := 0; i < len(ip); i += 2 {
			sum += uint32(be.Uint16(ip[i:]))
		}
		for sum > 0xffff {
			sum = sum>>16 + sum&0xffff
		}
		be.PutUint16(ip[10:], ^uint16(sum))
		return append(append(be.AppendUint16(b, 0x0800), ip...), l4...)
	}
	var chain []byte
	next := f.proto
	for i := len(f.exts) - 1; i >= 0; i-- {
		e := f.exts[i]
		h := make([]byte, max(e.size, 8))
		h[0] = next
		switch e.typ {
		case protoFragment:
			be.PutUint16(h[2:], e.frag)
		case protoAH:
			h[1] = byte(len(h)/4 - 2)
		default:
			h[1] = byte(len(h)/8 - 1)
		}
		chain, next = append(h, chain...), e.typ
	}
	ip := make([]byte, 40)
	ip[0], ip[6], ip[7] = 6<<4, next, 64
	be.PutUint16(ip[4:], uint16(len(chain)+len(l4)))
	copy(ip[8:], src.AsSlice())
	copy(ip[24:], dst.AsSlice())
	b = append(append(be.AppendUint16(b, 0x86dd), ip...), chain...)
	return append(b, l4...)
}

var tagSets = [][]uint16{nil, {0x8100}, {0x88a8}, {0x9100}, {0x88a8, 0x8100}}

// Every source, port and VLAN stacking, against the reference; the counters say exactly why.
func TestVerdictTable(t *testing.T) {
	l := newLab(t, labRules)
	seen := map[Reason]bool{}
	for _, src := range labSources {
		for _, port := range []uint16{25, 465, 587, 443} {
			for _, tags := range tagSets {
				seen[l.check(t, frame{src: src, port: port, tags: tags}.bytes())] = true
			}
		}
	}
	for _, r := range []Reason{PassOtherPort, PassNotBlocked, PassExpired, PassOutOfScope, PassHole, DropExact, DropCIDR} {
		if !seen[r] {
			t.Errorf("no packet had the reason %s", r)
		}
	}
}

// Ports that look like protected ones to maybe_protected(), and some that do not.
func TestVerdictPorts(t *testing.T) {
	l := newLab(t, labRules)
	seen := map[Reason]int{}
	for port := range 1 << 16 {
		alike := slices.Contains([]int{25 & 63, 465 & 63, 587 & 63}, port&63)
		if alike || port%97 == 0 {
			seen[l.check(t, frame{src: []string{"198.18.0.2", "2001:db8:0:2::9"}[port>>6&1], port: uint16(port)}.bytes())]++
		}
	}
	if len(seen) != 2 || seen[DropExact] != 3 {
		t.Errorf("reasons %v, want 3 of %s, and else %s", seen, DropExact, PassOtherPort)
	}
}

// A good packet and what may be wrong with it. The expectations are written out, so that they check the reference too.
func TestVerdictCases(t *testing.T) {
	l := newLab(t, labRules)
	const v4, v6, nice4, nice6 = "198.18.0.2", "2001:db8:0:2::9", "192.0.2.1", "2001:db8:ffff::1"
	many := func(n int) (e []ext) {
		for range n {
			e = append(e, ext{typ: protoDestOpts, size: 8})
		}
		return e
	}
	for _, c := range []struct {
		name string
		f    frame
		want Reason
	}{
		{"blocked", frame{src: v4, port: 25}, DropExact},
		{"blocked v6", frame{src: v6, port: 25}, DropExact},
		{"innocent", frame{src: nice4, port: 25}, PassNotBlocked},
		{"innocent v6", frame{src: nice6, port: 587}, PassNotBlocked},
		{"other port", frame{src: v4, port: 443}, PassOtherPort},
		{"mx only, mx", frame{src: "198.18.0.1", port: 25}, DropExact},
		{"mx only, submission", frame{src: "198.18.0.1", port: 587}, PassOutOfScope},
		{"submission only, mx", frame{src: "198.18.0.4", port: 25}, PassOutOfScope},
		{"submission only, smtps", frame{src: "198.18.0.4", port: 465}, DropExact},
		{"ended", frame{src: "198.18.0.3", port: 25}, PassExpired},
		{"ended in a living CIDR", frame{src: "198.18.1.9", port: 25}, DropCIDR},
		{"mx only in a CIDR for all", frame{src: "198.18.1.10", port: 587}, PassOutOfScope},
		{"hole", frame{src: "198.18.1.7", port: 25}, PassHole},
		{"CIDR in CIDR", frame{src: "198.18.1.200", port: 587}, PassOutOfScope},
		{"/64 with something longer", frame{src: "2001:db8:0:4::1", port: 25}, DropCIDR},
		{"hole in a /64", frame{src: "2001:db8:0:4::7", port: 25}, PassHole},
		{"udp", frame{src: v4, port: 25, proto: protoUDP}, PassNotTCP},
		{"icmp", frame{src: v4, port: 25, proto: protoICMP}, PassNotTCP},
		{"udp v6", frame{src: v6, port: 25, proto: protoUDP}, PassNotTCP},
		{"esp", frame{src: v6, port: 25, proto: protoESP}, PassNotTCP},
		{"first fragment", frame{src: v4, port: 25, frag: 0x2000}, DropExact},
		{"do not fragment", frame{src: v4, port: 25, frag: 0x4000}, DropExact},
		{"second fragment", frame{src: v4, port: 25, frag: 0x2001}, PassFragment},
		{"last fragment", frame{src: v4, port: 25, frag: 0x0100}, PassFragment},
		{"three tags", frame{src: v4, port: 25, tags: []uint16{0x88a8, 0x8100, 0x8100}}, PassNotIP},
		{"hop by hop", frame{src: v6, port: 25, exts: []ext{{typ: protoHopByHop, size: 8}}}, DropExact},
		{"long header", frame{src: v6, port: 25, exts: []ext{{typ: protoDestOpts, size: 512}}}, DropExact},
		{"routing", frame{src: v6, port: 25, exts: []ext{{typ: protoRouting, size: 24}}}, DropExact},
		{"auth", frame{src: v6, port: 25, exts: []ext{{typ: protoAH, size: 24}}}, DropExact},
		{"auth, not a multiple of 8", frame{src: v6, port: 25, exts: []ext{{typ: protoAH, size: 20}}}, DropExact},
		{"first fragment v6", frame{src: v6, port: 25, exts: []ext{{typ: protoFragment, frag: 1}}}, DropExact},
		{"second fragment v6", frame{src: v6, port: 25, exts: []ext{{typ: protoFragment, frag: 8}}}, PassFragment},
		{"six headers", frame{src: v6, port: 25, exts: many(6)}, DropExact},
		{"six headers, innocent", frame{src: nice6, port: 25, exts: many(6)}, PassNotBlocked},
		{"six headers, other port", frame{src: v6, port: 443, exts: many(6)}, PassOtherPort},
		{"seven headers", frame{src: v6, port: 25, exts: many(7)}, DropExtHeaders},
		{"seven headers, innocent", frame{src: nice6, port: 25, exts: many(7)}, PassExtHeaders},
		{"seven headers, other port", frame{src: v6, port: 443, exts: many(7)}, DropExtHeaders},
		{"seven headers, submission only", frame{src: "2001:db8:0:1::1", port: 443, exts: many(7)}, DropExtHeaders},
		{"seven headers, hole", frame{src: "2001:db8:0:4::7", port: 25, exts: many(7)}, PassExtHeaders},
	} {
		t.Run(c.name, func(t *testing.T) { l.expect(t, c.want, c.f.bytes()) })
	}
	for ihl := 5; ihl <= 15; ihl++ {
		l.expect(t, DropExact, frame{src: v4, port: 25, ihl: ihl}.bytes())
		l.expect(t, PassNotBlocked, frame{src: nice4, port: 25, ihl: ihl}.bytes())
		l.expect(t, PassOtherPort, frame{src: v4, port: 443, ihl: ihl}.bytes())
	}

	good := frame{src: v4, port: 25}.bytes()
	good6 := frame{src: v6, port: 25}.bytes()
	for _, c := range []struct {
		name   string
		pkt    []byte
		mutate func(b []byte)
		want   Reason
	}{
		{"ihl 4", good, func(b []byte) { b[14] = 0x44 }, PassMalformed},
		{"ihl 0", good, func(b []byte) { b[14] = 0x40 }, PassMalformed},
		{"version 6 in IPv4", good, func(b []byte) { b[14] = 0x65 }, PassMalformed},
		{"version 4 in IPv6", good6, func(b []byte) { b[14] = 0x40 }, PassMalformed},
		{"arp", good, func(b []byte) { b[12], b[13] = 8, 6 }, PassNotIP},
		{"802.3 length", good, func(b []byte) { b[12], b[13] = 0, 46 }, PassNotIP},
		{"source port 25 is no destination", good, func(b []byte) { b[34], b[35], b[36], b[37] = 0, 25, 200, 0 }, PassOtherPort},
		{"port in the wrong byte order", good, func(b []byte) { b[36], b[37] = 25, 0 }, PassOtherPort},
		{"destination blocked, source not", good, func(b []byte) { copy(b[30:], b[26:30]); b[26] = 10 }, PassNotBlocked},
		{"total length lies", good, func(b []byte) { b[16], b[17] = 0, 0 }, DropExact},
		{"no next header", good6, func(b []byte) { b[20] = 59 }, PassNotTCP},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := bytes.Clone(c.pkt)
			c.mutate(b)
			l.expect(t, c.want, b)
		})
	}
}

// Every length from the shortest that can be run up to the whole packet.
func TestVerdictTruncated(t *testing.T) {
	l := newLab(t, labRules)
	for _, tags := range tagSets {
		for _, f := range []frame{
			{src: "198.18.0.2", port: 25},
			{src: "198.18.0.2", port: 25, ihl: 9},
			{src: "192.0.2.1", port: 25},
			{src: "2001:db8:0:2::1", port: 25},
			{src: "2001:db8:ffff::1", port: 25},
			{src: "2001:db8:0:2::1", port: 25, exts: []ext{{typ: protoHopByHop, size: 16}, {typ: protoFragment, frag: 1}, {typ: protoAH, size: 12}}},
			{src: "2001:db8:ffff::1", port: 25, exts: []ext{{typ: protoHopByHop, size: 16}, {typ: protoFragment, frag: 1}, {typ: protoAH, size: 12}}},
		} {
			f.tags = tags
			pkt := f.bytes()
			for n := 14; n <= len(pkt); n++ {
				l.check(t, pkt[:n])
			}
		}
	}
}

// mutant makes a random packet from a good one.
func mutant(r *rand.Rand) []byte {
	extTypes := []byte{protoHopByHop, protoRouting, protoDestOpts, protoFragment, protoAH, protoAH, protoUDP, protoESP}
	f := frame{
		src:  labSources[r.IntN(len(labSources))],
		port: []uint16{25, 465, 587, 443}[r.IntN(4)],
		tags: tagSets[r.IntN(len(tagSets))],
		ihl:  5 + r.IntN(11)*r.IntN(2),
	}
	for range r.IntN(9) * r.IntN(2) {
		e := ext{typ: extTypes[r.IntN(len(extTypes))], size: 8 * (1 + r.IntN(6))}
		if e.typ == protoFragment {
			e.size, e.frag = 8, uint16(r.IntN(2))
		}
		f.exts = append(f.exts, e)
	}
	if r.IntN(8) == 0 {
		f.dst = "198.18.255.7"
		if netip.MustParseAddr(f.src).Is6() {
			f.dst = "2001:db8:25::7"
		}
	}
	b := f.bytes()
	for range r.IntN(3) {
		b[12+r.IntN(len(b)-12)] = byte(r.Uint32())
	}
	if r.IntN(4) == 0 {
		b = b[:14+r.IntN(len(b)-13)]
	}
	return b
}

// Random packets, against the reference.
func TestVerdictRandom(t *testing.T) {
	l := newLabWith(t, Options{Exempt: labExempt}, labRules)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	seen := map[Reason]int{}
	deadline := time.Now().Add(2 * time.Second)
	n := 0
	for ; time.Now().Before(deadline) && !t.Failed(); n++ {
		seen[l.check(t, mutant(r))]++
	}
	t.Logf("%d packets: %v", n, seen)
	for i := range reasonCount {
		if n > 20000 && seen[Reason(i)] == 0 && Reason(i) < DropLimitedSource { // which are TestAdmissionRandom's
			t.Errorf("no packet had the reason %s", Reason(i))
		}
	}
}

func FuzzVerdict(f *testing.F) {
	for _, src := range labSources {
		f.Add(frame{src: src, port: 25}.bytes())
	}
	f.Add(frame{src: "198.18.0.2", port: 25, ihl: 15, tags: []uint16{0x88a8, 0x8100}}.bytes())
	f.Add(frame{src: "2001:db8:0:2::1", port: 25, exts: []ext{{typ: protoAH, size: 20}, {typ: protoFragment, frag: 1}}}.bytes())
	l := newLabWith(f, Options{Exempt: labExempt}, labRules)
	f.Fuzz(func(t *testing.T, pkt []byte) {
		if len(pkt) < 14 || len(pkt) > 2000 {
			t.Skip("BPF_PROG_TEST_RUN takes 14 bytes to a page")
		}
		l.check(t, pkt)
	})
}

// The verifier takes both programs, and says how much work they are.
func TestVerifier(t *testing.T) {
	s := openTest(t, Options{})
	for _, name := range []string{shieldProgMxshieldXdp, shieldProgMxshieldTc} {
		if name == shieldProgMxshieldTc && !haveTCX() {
			t.Log("the tcx program is left out: it needs kernel 6.6")
			continue
		}
		spec, err := s.spec()
		if err != nil {
			t.Fatal(err)
		}
		for other := range spec.Programs {
			if other != name {
				delete(spec.Programs, other)
			}
		}
		if v, err := features.LinuxVersionCode(); err == nil && v < 5<<16|18<<8 {
			spec.Programs[name].Flags &^= flagXDPFrags
		}
		for name, m := range s.gen.maps {
			spec.Maps[name].MaxEntries = m.MaxEntries()
		}
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
			MapReplacements: s.gen.maps,
			Programs:        ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats},
		})
		if err != nil {
			t.Fatalf("%s: %+v", name, err)
		}
		defer coll.Close()
		prog := coll.Programs[name]
		info, err := prog.Info()
		if err != nil {
			t.Fatal(err)
		}
		verified, _ := info.VerifiedInstructions()
		jited, _ := info.JitedSize()
		insns, err := info.Instructions()
		if err != nil {
			t.Logf("%s: instructions: %v", name, err)
		}
		t.Logf("%s: %d instructions in the object, %d verified, %d loaded, %d bytes of machine code\n%s", name,
			len(spec.Programs[name].Instructions), verified, len(insns), jited, prog.VerifierLog)
		// Kernels since 5.2 allow a million verified; far below it there is room for older, slower verifiers.
		if verified > 100_000 {
			t.Errorf("%s: %d verified instructions", name, verified)
		}
		if bytes.Contains([]byte(prog.VerifierLog), []byte("invalid")) {
			t.Errorf("%s: the verifier complains", name)
		}
	}
}

func TestReasonNames(t *testing.T) {
	seen := map[string]bool{}
	for i := range reasonCount {
		name := Reason(i).String()
		if name == "" || seen[name] {
			t.Errorf("reason %d is called %q", i, name)
		}
		seen[name] = true
		if want := name[:5] == "drop_"; Reason(i).Drop() != want {
			t.Errorf("%s: Drop() = %v", name, !want)
		}
	}
	if got := Reason(reasonCount).String(); got != fmt.Sprintf("reason_%d", reasonCount) {
		t.Errorf("unknown reason is called %q", got)
	}
	// The enum of the object says the same words.
	spec, err := loadShield()
	if err != nil {
		t.Fatal(err)
	}
	checkEnum(t, spec)
}
