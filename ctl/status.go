package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
)

func (c *ctl) statusCommands() []*cli.Command {
	return []*cli.Command{{
		Name: "status", Usage: "show what the agent does",
		Action: func(x *cli.Context) error {
			if err := args(x, 0, 0, "status"); err != nil {
				return err
			}
			var s control.Status
			if err := c.client.Get(x.Context, "/v1/status", nil, &s); err != nil {
				return err
			}
			return c.show(s, func() { c.status(&s) })
		},
	}}
}

func (c *ctl) status(s *control.Status) {
	p := func(name, format string, a ...any) { fmt.Fprintf(c.out, "%-12s %s\n", name, fmt.Sprintf(format, a...)) }
	state := "on"
	switch {
	case s.Off != nil:
		state = fmt.Sprintf("OFF since %s by %s%s: nothing is dropped; `mxshieldctl on` ends it", when(s.Off.Since), s.Off.By, colon(s.Off.Reason))
	case s.DryRun:
		state = "DRY RUN: nothing is dropped"
	}
	p("shield", "%s", state)
	p("node", "%s, agent %s, pid %d, up %s", s.Node, s.Version, s.PID, ago(s.Now.Sub(s.Started)))
	for _, i := range s.Interfaces {
		p("interface", "%s, %s", i.Name, i.Mode)
	}
	p("ports", "mx %s; submission %s", ports(s.Ports.MX), ports(s.Ports.Submission))
	what := "blocked"
	if s.DryRun {
		what = "would be blocked"
	}
	p("blocks", "%d %s (%d manual), %d of them with accepted mail; %d allows, %d holds after unblocks", s.Blocks.Blocks, what, s.Blocks.Manual, s.Accepted, s.Blocks.Allows, s.Blocks.Clears)
	if len(s.Blocks.Causes) > 1 {
		var t []string
		for _, cause := range block.Causes() {
			if n := s.Blocks.Causes[cause].Sum(); n > 0 {
				t = append(t, fmt.Sprintf("%s %d", cause, n))
			}
		}
		p("", "%s", strings.Join(t, ", "))
	}
	var drops, passes uint64
	for r, n := range s.Packets {
		if strings.HasPrefix(r, "drop") {
			drops += n
		} else {
			passes += n
		}
	}
	p("packets", "%d dropped, %d passed", drops, passes)
	for _, r := range slices.Sorted(maps.Keys(s.Packets)) {
		if s.Packets[r] > 0 {
			p("", "%-22s %d", r, s.Packets[r])
		}
	}
	if l := s.Limits; l != nil {
		var t []string
		if l.SYNPerSource > 0 {
			t = append(t, fmt.Sprintf("%d new connections/s per source (%d at once), %d over it", l.SYNPerSource, l.SourceBurst, s.Packets["drop_limited_source"]))
		}
		if l.SYNTotal > 0 {
			t = append(t, fmt.Sprintf("%d/s in all (%d at once), %d over it", l.SYNTotal, l.TotalBurst, s.Packets["drop_limited_total"]))
		}
		p("limits", "%s", strings.Join(t, "; "))
	}
	if s.Ended > 0 {
		p("sessions", "%d of blocked sources ended", s.Ended)
	}
	for _, i := range s.Inputs {
		t := fmt.Sprintf("%s, %s, %d lines", i.ID, i.State, i.Lines)
		if !i.LastLine.IsZero() {
			t += ", last " + ago(s.Now.Sub(i.LastLine)) + " ago"
		}
		if i.Lag > 0 {
			t += fmt.Sprintf(", %d bytes behind", i.Lag)
		}
		if i.LagSeconds >= 1 {
			t += ", " + ago(time.Duration(i.LagSeconds*float64(time.Second))) + " behind"
		}
		if i.Of != "" {
			p("", "%s", t)
		} else {
			p("input", "%s", t)
		}
		for _, more := range []string{i.Detail, i.LastError} {
			if more != "" {
				p("", "%s", more)
			}
		}
	}
	if s.DNS != nil {
		c.dnsLists(s.DNS, p)
	}
	if s.Hold != nil {
		c.hold(s.Hold, p)
	}
	if k := s.Cluster; k != nil {
		if k.Addr == "" {
			p("cluster", "not joined yet")
		} else {
			p("cluster", "%d of %d peers alive, %d entries learned, %d to come (mxshieldctl peers)", k.Alive, k.Peers, k.Learned, k.Lag)
		}
	}
	if o := s.Own; o != nil {
		p("own", "%d own addresses are watched, %d of them listed (mxshieldctl reputation)", o.Watched, o.Listed)
	}
	if z := s.Publish; z != nil {
		p("publish", "%s on %s: %d questions, %d answered with a listing, %d refused", z.Zone, z.Listen, z.Queries, z.Listed, z.Refused)
	}
	if s.Metrics != "" {
		p("metrics", "http://%s/metrics", s.Metrics)
	}
	p("sources", "%d with a score", s.Sources)
	p("state", "%s, %d kB", s.State.Path, s.State.Bytes/1024)
	if s.State.Error != "" {
		p("", "LAST WRITE FAILED: %s", s.State.Error)
	}
	p("never block", "%d rules (mxshieldctl allow list --all)", len(s.Never))
	if n := len(s.Senders); n > 0 {
		known, ranges, failed := 0, 0, 0
		for _, r := range s.Senders {
			ranges += r.Ranges
			if r.Ranges > 0 {
				known++
			}
			if r.Error != "" {
				failed++
			}
		}
		t := fmt.Sprintf("%d allowed by name, %d of them known with %d ranges", n, known, ranges)
		if failed > 0 {
			t += fmt.Sprintf("; %d could not be refreshed", failed)
		}
		p("senders", "%s (mxshieldctl allow list)", t)
	}
	for _, w := range s.Warnings {
		p("WARNING", "%s", w)
	}
}

// dnsLists prints a line per DNS list.
func (c *ctl) dnsLists(d *control.DNS, p func(name, format string, a ...any)) {
	for _, l := range d.Lists {
		t := fmt.Sprintf("%s, %s, asked %d, listed %d, errors %d, skipped %d, %d queries left today, %.0f ms", l.Zone, l.IPv4, l.Asked, l.Listed, l.Errors, l.Skipped, l.Left, l.Millis)
		if l.IPv6 != l.IPv4 {
			t += ", IPv6 " + l.IPv6
		}
		p("list", "%s", t)
	}
	for _, r := range d.Resolvers {
		state := "ok"
		if r.Down {
			state = "DOWN: " + r.Why
		}
		p("resolver", "%s, %s, %.0f ms, %d failures", r.Server, state, r.Millis, r.Failures)
	}
	if d.Dropped > 0 {
		p("", "%d sources were not asked about: too many at once", d.Dropped)
	}
}

func ports(list []uint16) string {
	if len(list) == 0 {
		return "none"
	}
	var t []string
	for _, p := range list {
		t = append(t, fmt.Sprint(p))
	}
	return strings.Join(t, ",")
}

func colon(s string) string {
	if s == "" {
		return ""
	}
	return fmt.Sprintf(" (%q)", s)
}

const noEnd = "no end"

// when prints a time as people compare it with their logs: local, to the second.
func when(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Local().Format("2006-01-02 15:04:05 MST")
}

func until(t time.Time) string {
	if t.IsZero() {
		return noEnd
	}
	return when(t)
}

// column prints a time for a table, whose head says the zone with zoned; times of another one, in summer or winter, say it
// themselves.
func column(t time.Time) string {
	if now, then := zone(time.Now()), zone(t); now != then || t.IsZero() {
		return when(t)
	}
	return t.Local().Format(time.DateTime)
}

func columnUntil(t time.Time) string {
	if t.IsZero() {
		return noEnd
	}
	return column(t)
}

func zone(t time.Time) string { return t.Local().Format("MST") }

// zoned adds the zone to the heads of columns with times.
func zoned(head string) string {
	z := " (" + zone(time.Now()) + ")"
	return strings.NewReplacer("SINCE", "SINCE"+z, "UNTIL", "UNTIL"+z, "WHEN", "WHEN"+z, "CHECKED", "CHECKED"+z).Replace(head)
}

// ago prints a duration with one or two units.
func ago(d time.Duration) string {
	switch d = d.Round(time.Second); {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return d.String()
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%02dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}
