package maillog

import (
	"net/netip"
	"strings"
	"testing"
)

// FuzzAddr holds the reader of addresses against the standard library's.
func FuzzAddr(f *testing.F) {
	for _, s := range []string{"192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "::", "1::", "::1", "1:2:3:4:5:6:7::", "::2:3:4:5:6:7:8",
		"1:2:3:4:5:6:192.0.2.1", "fe80::1%eth0", "01.2.3.4", "1:2:3:4:5:6:7:8:9", "a:b", "1.2.3.4:5", "12345::", "::%x", "1::2::3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 45 || strings.Contains(s, "%") {
			return
		}
		got, ok := parseAddr([]byte(s))
		want, err := netip.ParseAddr(s)
		want = want.Unmap()
		if ok != (err == nil && !want.IsUnspecified()) || ok && got != want {
			t.Errorf("%q: %v %v, want %v %v", s, got, ok, want, err)
		}
	})
}
