package verdict

import (
	"os"
	"testing"

	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// one pass for callgrind
func TestZZ3(t *testing.T) {
	which := os.Getenv("ZZ3")
	traps := new(maillog.Traps)
	traps.Add("honeypot@example.org")
	var log [][]byte
	switch which {
	case "exim":
		log = eximBusy(6000, 50000)
	case "dovecot":
		log = dovecotBusy(6000, 50000)
	case "day":
		log = fileLines("/tmp/fast/day.log")
		log = log[20000:26000]
	default:
		log = busy(6000, 50000)
	}
	p, s := maillog.New(maillog.Options{Traps: traps, Recipients: true}), New(DefaultConfig())
	pass(p, s, log)
	pass(p, s, log)
}

//go:noinline
func pass(p *maillog.Parser, s *Scorer, log [][]byte) {
	var e maillog.Event
	for _, l := range log {
		if p.Parse(l, t0, &e) {
			s.Observe(&e, t0)
		}
	}
}
