package bpf

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
)

// maxExempts is how many prefixes of each family the program compares.
const maxExempts = 16

// CheckExempt says what is wrong with a list of local prefixes for [Options]: the program walks it, so there may be at
// most 16 of each family, and all of a family would switch the shield off, which is another command's work.
func CheckExempt(list []netip.Prefix) error {
	v4, v6 := 0, 0
	for _, p := range list {
		switch {
		case !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() || p.Addr().Zone() != "":
			return fmt.Errorf("exempt: %v is no canonical prefix", p)
		case p.Bits() == 0:
			return hint(fmt.Errorf("exempt: %s is every address", p), "`mxshieldctl off` switches the shield off")
		case p.Addr().Is4():
			v4++
		default:
			v6++
		}
	}
	if v4 > maxExempts || v6 > maxExempts {
		return hint(fmt.Errorf("exempt: %d IPv4 and %d IPv6 prefixes, at most %d of each can be", v4, v6, maxExempts),
			"name a CIDR instead of its addresses")
	}
	return nil
}

// setExempt writes the list into the program's constants.
func setExempt(spec *ebpf.CollectionSpec, list []netip.Prefix) error {
	var (
		v4     [maxExempts]shieldExemptV4
		v6     [maxExempts]shieldExemptV6
		n4, n6 uint32
	)
	words := func(b []byte, to []uint32) {
		for i := range to {
			to[i] = binary.NativeEndian.Uint32(b[4*i:]) // the bytes keep their order: the program compares in network order
		}
	}
	for _, p := range list {
		// The mask is what is left of an address of ones.
		ones := netip.AddrFrom4([4]byte{255, 255, 255, 255})
		if p.Addr().Is6() {
			ones = netip.AddrFrom16([16]byte{255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255})
		}
		mask, err := ones.Prefix(p.Bits())
		if err != nil {
			return fmt.Errorf("exempt %s: %w", p, err)
		}
		if p.Addr().Is4() {
			var addr, m [1]uint32
			words(p.Addr().AsSlice(), addr[:])
			words(mask.Addr().AsSlice(), m[:])
			v4[n4] = shieldExemptV4{Addr: addr[0], Mask: m[0]}
			n4++
		} else {
			words(p.Addr().AsSlice(), v6[n6].Addr[:])
			words(mask.Addr().AsSlice(), v6[n6].Mask[:])
			n6++
		}
	}
	for _, v := range []struct {
		name string
		to   any
	}{{shieldVarExemptV4, v4}, {shieldVarExemptV6, v6}, {shieldVarExemptsV4, n4}, {shieldVarExemptsV6, n6}} {
		if err := spec.Variables[v.name].Set(v.to); err != nil {
			return fmt.Errorf("set %s: %w", v.name, err)
		}
	}
	return nil
}
