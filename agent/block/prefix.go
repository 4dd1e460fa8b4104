package block

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// pkey is a prefix without pointers (netip.Prefix holds one, which the garbage collector would have to follow a
// million times): 128 bits of address, IPv4 as ::ffff:a.b.c.d, and the length in that space.
type pkey struct {
	hi, lo uint64
	bits   uint8
}

const v4Bits = 96 // where the IPv4 part of a mapped address begins

func keyOf(p netip.Prefix) pkey {
	b := p.Addr().As16()
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += v4Bits
	}
	return pkey{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:]), uint8(bits)}.masked(uint8(bits))
}

func (k pkey) masked(bits uint8) pkey {
	switch {
	case bits == 0:
		return pkey{0, 0, 0}
	case bits <= 64:
		return pkey{k.hi &^ (1<<(64-bits) - 1), 0, bits}
	case bits >= 128:
		return pkey{k.hi, k.lo, 128}
	default:
		return pkey{k.hi, k.lo &^ (1<<(128-bits) - 1), bits}
	}
}

func (k pkey) is4() bool { return k.hi == 0 && k.lo>>32 == 0xffff && k.bits >= v4Bits }

func (k pkey) prefix() netip.Prefix {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], k.hi)
	binary.BigEndian.PutUint64(b[8:], k.lo)
	a := netip.AddrFrom16(b)
	if k.is4() {
		return netip.PrefixFrom(a.Unmap(), int(k.bits)-v4Bits)
	}
	return netip.PrefixFrom(a, int(k.bits))
}

// covers says whether every address of o is an address of k. The families are apart: ::/32 does not hold IPv4.
func (k pkey) covers(o pkey) bool {
	return k.bits <= o.bits && k.is4() == o.is4() && o.masked(k.bits) == k
}

// lengths counts how many prefixes of each length there are, so that a look-up of all prefixes around an address
// probes only the lengths in use: two or three, hardly ever more than ten.
type lengths [129]uint32

func (l *lengths) around(k pkey, visit func(pkey)) {
	bits := 0
	if k.is4() {
		bits = v4Bits
	}
	for ; bits <= int(k.bits); bits++ {
		if l[bits] > 0 {
			visit(k.masked(uint8(bits)))
		}
	}
}

// Width limits, as prefix lengths. A wider prefix is refused, whoever asks: one typing error must not cut off a
// continent, and one clear must not open it.
const (
	MinBits4, MinBits6         = 16, 32 // by any path, clears and allows included
	MinAutoBits4, MinAutoBits6 = 24, 48 // automatic blocks
)

// ErrPrefix is wrapped by every refusal of a prefix because of its form or width.
var ErrPrefix = errors.New("prefix refused")

// ParsePrefix reads an address or a CIDR as people type it. A bare IPv4 address is a /32 and a bare IPv6 address a
// /128; IPv4-mapped IPv6 becomes IPv4. Set host bits and zones are errors, since what is meant is then not clear.
func ParsePrefix(s string) (netip.Prefix, error) {
	if len(s) > 64 {
		return netip.Prefix{}, fmt.Errorf("%w: %q... is too long for an address or CIDR", ErrPrefix, s[:64])
	}
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%w: %q has a zone", ErrPrefix, s)
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%w: %q is neither an address nor a CIDR", ErrPrefix, s)
	}
	if p.Addr().Is4In6() {
		if p.Bits() < v4Bits {
			return netip.Prefix{}, fmt.Errorf("%w: %q is wider than the IPv4-mapped range", ErrPrefix, s)
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-v4Bits)
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%w: %q has host bits set; the network is %s", ErrPrefix, s, p.Masked())
	}
	return p, nil
}

func checkWidth(p netip.Prefix, automatic bool) error {
	if !p.IsValid() || p.Addr().Zone() != "" || p.Addr().Is4In6() || p != p.Masked() {
		return fmt.Errorf("%w: %v is not a canonical prefix", ErrPrefix, p)
	}
	min := MinBits6
	switch v4 := p.Addr().Is4(); {
	case v4 && automatic:
		min = MinAutoBits4
	case v4:
		min = MinBits4
	case automatic:
		min = MinAutoBits6
	}
	if p.Bits() < min {
		return fmt.Errorf("%w: %s is wider than /%d", ErrPrefix, p, min)
	}
	return nil
}

// ParseDuration reads 90s, 15m, 72h and, which time.ParseDuration lacks, 3d and 1w.
func ParseDuration(s string) (time.Duration, error) {
	if n := len(s); n > 1 && n < 10 {
		unit := map[byte]time.Duration{'d': 24 * time.Hour, 'w': 7 * 24 * time.Hour}[s[n-1]]
		if unit != 0 {
			var k int
			if _, err := fmt.Sscanf(s[:n-1]+"\n", "%d\n", &k); err == nil && k >= 0 && k < 100_000 {
				return time.Duration(k) * unit, nil
			}
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%.40q is no duration", s)
	}
	return d, nil
}
