package bpf

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"unsafe"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// A packet of a blocked source to an exempt address passes, to its neighbours it does not, on whatever side of the
// prefix; packets that would pass anyway keep their reason if it comes earlier.
func TestExempt(t *testing.T) {
	l := newLabWith(t, Options{Exempt: labExempt}, labRules)
	const bad4, good4, bad6 = "198.18.0.2", "198.18.0.5", "2001:db8:0:2::1"
	for _, c := range []struct {
		src, dst string
		port     uint16
		want     Reason
	}{
		{bad4, "198.18.255.7", 25, PassExempt},
		{bad4, "198.18.255.7", 465, PassExempt},
		{bad4, "198.18.255.6", 25, DropExact},
		{bad4, "198.18.255.8", 25, DropExact},
		{bad4, "198.18.240.0", 25, PassExempt},
		{bad4, "198.18.243.255", 25, PassExempt},
		{bad4, "198.18.244.0", 25, DropExact},
		{bad4, "198.18.239.255", 25, DropExact},
		{"198.18.1.1", "198.18.242.1", 25, PassExempt}, // of a blocked CIDR
		{good4, "198.18.255.7", 25, PassExempt},
		{good4, "198.18.255.8", 25, PassNotBlocked},
		{bad4, "198.18.255.7", 443, PassOtherPort},
		{bad6, "2001:db8:25::7", 25, PassExempt},
		{bad6, "2001:db8:25::8", 25, DropExact},
		{bad6, "2001:db8:26::1", 25, PassExempt},
		{bad6, "2001:db8:27:ffff::1", 587, PassExempt},
		{bad6, "2001:db8:28::", 25, DropExact},
		{bad6, "2001:db8:99:8000::1", 25, PassExempt},
		{bad6, "2001:db8:99:7fff::1", 25, DropExact},
		{bad6, "2001:db8:25::7", 443, PassOtherPort},
	} {
		l.expect(t, c.want, frame{src: c.src, dst: c.dst, port: c.port}.bytes())
	}
	// Behind more extension headers than are walked the port is not known, the destination is.
	var exts []ext
	for range 7 {
		exts = append(exts, ext{typ: protoDestOpts})
	}
	for dst, want := range map[string]Reason{"2001:db8:25::7": PassExempt, "2001:db8:25::8": DropExtHeaders} {
		l.expect(t, want, frame{src: bad6, dst: dst, port: 25, exts: exts}.bytes())
	}
}

// All places of both families, and the last of them.
func TestExemptFull(t *testing.T) {
	var list []netip.Prefix
	for i := range maxExempts {
		list = append(list, prefixes(fmt.Sprintf("198.18.%d.0/24", 100+i), fmt.Sprintf("2001:db8:%x::/48", 0x100+i))...)
	}
	l := newLabWith(t, Options{Exempt: list}, labRules)
	for i := range maxExempts {
		for src, dst := range map[string]string{"198.18.0.2": fmt.Sprintf("198.18.%d.9", 100+i), "2001:db8:0:2::1": fmt.Sprintf("2001:db8:%x::9", 0x100+i)} {
			l.expect(t, PassExempt, frame{src: src, dst: dst, port: 25}.bytes())
		}
	}
	_, err := Open(Options{Pins: testPins(t), Exempt: append(list, prefixes("192.0.2.1/32")...)})
	wantHint(t, err, "at most 16", "CIDR")
	wantHint(t, CheckExempt(prefixes("0.0.0.0/0")), "mxshieldctl off")
	for _, p := range []netip.Prefix{{}, netip.PrefixFrom(netip.MustParseAddr("192.0.2.1"), 24), netip.MustParsePrefix("::ffff:192.0.2.1/128")} {
		if CheckExempt([]netip.Prefix{p}) == nil {
			t.Errorf("%v is no error", p)
		}
	}
}

// Without exempt addresses the verifier takes the whole test out: the program that runs has fewer instructions for
// every place that is empty.
func TestExemptCostsNothingUnused(t *testing.T) {
	size := func(list []netip.Prefix) int {
		s := openTest(t, Options{Exempt: list})
		defer s.Close()
		info, err := s.xdp.Info()
		must(t, err)
		insns, err := info.Instructions()
		if err != nil {
			t.Skip("skipped: the kernel does not show the translated program:", err)
		}
		return len(insns)
	}
	none, one, two := size(nil), size(prefixes("198.18.255.7/32")), size(prefixes("198.18.255.7/32", "198.18.255.8/32"))
	if !(none < one && one < two) {
		t.Errorf("instructions with 0, 1, 2 prefixes: %d, %d, %d", none, one, two)
	}
	if per := two - one; one-none > 4*per {
		t.Errorf("the first prefix costs %d instructions, the second %d: something is left without any", one-none, per)
	}
}

func TestExemptLayout(t *testing.T) {
	spec, err := loadShield()
	must(t, err)
	for name, want := range map[string]uintptr{
		shieldVarExemptV4: unsafe.Sizeof([maxExempts]shieldExemptV4{}), shieldVarExemptV6: unsafe.Sizeof([maxExempts]shieldExemptV6{}),
	} {
		if got := spec.Variables[name].Size(); uintptr(got) != want {
			t.Errorf("%s: %d bytes, want %d", name, got, want)
		}
	}
	// 198.18.255.7/31 as it stands in the program: bytes in network order.
	must(t, setExempt(spec, prefixes("198.18.255.6/31")))
	var v4 [maxExempts]shieldExemptV4
	must(t, spec.Variables[shieldVarExemptV4].Get(&v4))
	if got := unsafe.Slice((*byte)(unsafe.Pointer(&v4[0])), 8); !bytes.Equal(got, []byte{198, 18, 255, 6, 255, 255, 255, 254}) {
		t.Errorf("%v", got)
	}
}
