//go:build linux

package main

import (
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mxshield/mxshield/agent/control"
)

// screen is where the story is told: on a terminal the live line is redrawn, elsewhere there is one every second.
type screen struct {
	w     io.Writer
	gone  func() // nobody reads any more
	width int    // of the terminal; 0: it is none
	drawn bool   // a live line stands there without an end
	last  time.Time
	held  string // the newest live line, if it is not shown yet
}

func newScreen(w io.Writer, gone func()) *screen {
	s := &screen{w: w, gone: gone}
	if f, ok := w.(*os.File); ok {
		if ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
			s.width = max(40, int(ws.Col))
			if ws.Col == 0 {
				s.width = 80
			}
		}
	}
	return s
}

// every is how often live is worth calling.
func (s *screen) every() time.Duration { return 200 * time.Millisecond }

func (s *screen) live(format string, args ...any) {
	text := "  " + fmt.Sprintf(format, args...)
	if s.width > 0 {
		s.write("\r\x1b[K%.*s", s.width-1, text)
		s.drawn = true
		return
	}
	s.held = text
	if time.Since(s.last) >= time.Second {
		s.flushLive()
	}
}

func (s *screen) write(format string, args ...any) {
	if _, err := fmt.Fprintf(s.w, format, args...); err != nil {
		s.gone()
	}
}

func (s *screen) flushLive() {
	if s.held != "" {
		s.write("%s\n", s.held)
		s.held, s.last = "", time.Now()
	}
}

// endLive keeps the last live line.
func (s *screen) endLive() {
	if s.drawn {
		s.write("\n")
		s.drawn = false
	}
	s.flushLive()
}

func (s *screen) print(format string, args ...any) {
	s.endLive()
	s.write(format, args...)
}

func (s *screen) heading(text string) { s.print("\n== %s\n", text) }

func (s *screen) row(name, format string, args ...any) {
	s.print("  %-11s %s\n", name, fmt.Sprintf(format, args...))
}

// ms prints a duration as people compare it.
func ms(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/1e6)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

// durations is a sorted sample.
type durations []time.Duration

func (d durations) quantile(q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	i := int(math.Ceil(q*float64(len(d)))) - 1
	return d[min(max(i, 0), len(d)-1)]
}

// deliveries are messages of the honest sender.
type deliveries []delivery

func (l deliveries) delivered() (n int) {
	for _, d := range l {
		if d.ok {
			n++
		}
	}
	return n
}

func (l deliveries) latencies() (out durations) {
	for _, d := range l {
		if d.ok {
			out = append(out, d.took)
		}
	}
	slices.Sort(out)
	return out
}

func (l deliveries) String() string {
	if len(l) == 0 {
		return "none"
	}
	q := l.latencies()
	return fmt.Sprintf("%3d of %d delivered; latency p50 %s, p90 %s, max %s", l.delivered(), len(l), ms(q.quantile(.5)), ms(q.quantile(.9)), ms(q.quantile(1)))
}

// short is for the live line.
func (l deliveries) short() string {
	return fmt.Sprintf("%d/%d p50 %s", l.delivered(), len(l), ms(l.latencies().quantile(.5)))
}

// dropped are the packets that the shield dropped.
func dropped(s *control.Status) (n uint64) {
	for reason, packets := range s.Packets {
		if strings.HasPrefix(reason, "drop") {
			n += packets
		}
	}
	return n
}

// reasons are the packets between two looks, by reason.
func reasons(before, after *control.Status) map[string]uint64 {
	out := map[string]uint64{}
	for reason, n := range after.Packets {
		if d := n - before.Packets[reason]; d > 0 {
			out[reason] = d
		}
	}
	return out
}

// print is the table of figures.
func (r *record) print(out *screen) {
	row := func(name, format string, args ...any) {
		out.print("  %-42s %s\n", name, fmt.Sprintf(format, args...))
	}
	q := r.delays
	row("mail server", "%s", r.mta.Name())
	row("attackers blocked", "%d of %d", len(r.attackers)-r.open, len(r.attackers))
	row("from the first offence to the block (1)", "p50 %s, p99 %s, max %s", ms(q.quantile(.5)), ms(q.quantile(.99)), ms(q.quantile(1)))
	row("attack sessions that reached the MTA (2)", "%d, %.1f per attacker; %d of them begun after the block", r.sessions,
		float64(r.sessions)/float64(len(r.attackers)), r.late)
	row("attackers' attempts to connect", "%d", r.knocks)
	for i, reason := range slices.Sorted(maps.Keys(r.packets)) {
		row(word(i == 0, "packets that XDP saw, by reason", ""), "%-20s %d", reason, r.packets[reason])
	}
	row("honest mail before the attack", "%s", r.quiet)
	row("            during, until the last block", "%s", r.during)
	row("            after, attackers still knocking", "%s", r.after)
	out.print("  (1) from the attacker's first refused recipient (its clock) to the stamp of its block (mxshieldctl list)\n" +
		"  (2) \"connect from\" lines in the MTA's log; the honest sender's are not counted\n")
}
