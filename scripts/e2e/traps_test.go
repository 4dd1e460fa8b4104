//go:build linux

package e2e

import (
	"strings"
	"testing"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/scripts/lab"
)

// TestTraps: one message to a trap blocks its source, whether Postfix refuses the recipient or delivers the message; what
// the null sender brings does not.
func TestTraps(t *testing.T) {
	r := newRig(t, lab.Options{}, "traps: [honeypot@example.org, user2@example.org]\n")
	r.start()
	ctx := t.Context()
	src := lab.Sources(lab.Attack4, 4)
	bounce := lab.Talk{Reply: brief.Reply, From: "<>"}

	// First those who must not be blocked: their lines are read by the time the others are.
	for _, rcpt := range []string{"<honeypot@example.org>", "<user2@example.org>"} {
		lab.Dictionary(ctx, r.top.Net, src[2], mx, lab.DictionaryOptions{Talk: bounce, Recipients: 1, Rcpt: []string{rcpt}})
	}
	if h := lab.Honest(ctx, r.top.Net, src[2], mx, lab.HonestOptions{Talk: bounce, To: []string{"user2@example.org"}}); h.Accepted != 1 {
		t.Fatalf("the bounce: %+v", h)
	}
	if h := lab.Honest(ctx, r.top.Net, lab.Honest4, mx, lab.HonestOptions{Messages: 2}); h.Accepted != 2 {
		t.Fatalf("the honest sender: %+v", h)
	}
	// An accepted recipient without a message: nobody has sent anything.
	lab.Dictionary(ctx, r.top.Net, src[3], mx, lab.DictionaryOptions{Talk: brief, Recipients: 1, Rcpt: []string{"<user2@example.org>"}})

	lab.Dictionary(ctx, r.top.Net, src[0], mx, lab.DictionaryOptions{Talk: brief, Recipients: 1, Rcpt: []string{"<HoneyPot+news@example.org>"}})
	if h := lab.Honest(ctx, r.top.Net, src[1], mx, lab.HonestOptions{To: []string{"user1@example.org", "user2@example.org"}}); h.Accepted != 1 {
		t.Fatalf("the message to a trap: %+v", h)
	}
	for i, s := range src[:2] {
		w := r.awaitBlock(s)
		if w.Decision.By.Cause != block.Trap || w.Decision.Scope != block.ScopeMX || !strings.Contains(w.Words, "1 trap hit, ") {
			t.Errorf("source %d: %s", i, w.Words)
		}
		if w.Evidence == nil || len(w.Evidence.Samples) == 0 || strings.Contains(strings.ToLower(strings.Join(w.Evidence.Samples, " ")), "honeypot") {
			t.Errorf("source %d: the evidence names the trap or nothing: %+v", i, w.Evidence)
		}
		if !r.timesOut(s, mx) {
			t.Errorf("source %d: a connect is still answered", i)
		}
	}
	r.awaitLines()
	for _, a := range append(src[2:], lab.Honest4) {
		if w := r.why(a); w.Decision.Drop {
			t.Errorf("%s", w.Words)
		}
	}
}
