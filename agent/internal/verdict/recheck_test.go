package verdict

import (
	"net/netip"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// TestRefused: a verdict that had no effect leaves the score, and the next offence gives another one; one that had
// stays the only one.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		refuse func(st *story)
		want   int
	}{
		{"taken", func(*story) {}, 1},
		{"refused", func(st *story) { st.s.Refused(netip.PrefixFrom(src, 32)) }, 2},
		{"rechecked, gone", func(st *story) { st.s.Recheck(st.now, func(netip.Prefix) bool { return false }) }, 2},
		{"rechecked, stands", func(st *story) { st.s.Recheck(st.now, func(netip.Prefix) bool { return true }) }, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := newStory()
			st.do(maillog.UnknownRecipient, 10, time.Second)
			c.refuse(st)
			st.do(maillog.UnknownRecipient, 1, time.Second)
			if len(st.verdicts) != c.want {
				t.Fatalf("%d verdicts, want %d", len(st.verdicts), c.want)
			}
			if v := st.verdicts[len(st.verdicts)-1]; v.Repeat != 0 {
				t.Errorf("a refused verdict counts as a repetition: %+v", v)
			}
		})
	}
}
