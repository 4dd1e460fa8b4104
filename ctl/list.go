package main

import (
	"fmt"
	"net/url"
	"sort"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
)

func (c *ctl) listCommands() []*cli.Command {
	return []*cli.Command{
		{
			Name: "list", Usage: "list blocks, newest first", ArgsUsage: "[PREFIX]",
			Description: "With PREFIX only blocks inside it or around it.",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "cause", Usage: "only this `CAUSE`"},
				&cli.BoolFlag{Name: "all", Usage: "also blocks that have ended, are cancelled or overridden"},
				&cli.IntFlag{Name: "limit", Value: 1000, Usage: "at most `N` rows; 0 for all"},
			},
			Action: func(x *cli.Context) error {
				if err := args(x, 0, 1, "list [PREFIX]"); err != nil {
					return err
				}
				q := url.Values{"limit": {strconv.Itoa(x.Int("limit"))}}
				if x.NArg() == 1 {
					q.Set("within", x.Args().First())
				}
				if x.String("cause") != "" {
					q.Set("cause", x.String("cause"))
				}
				if x.Bool("all") {
					q.Set("all", "1")
				}
				var l control.List
				if err := c.client.Get(x.Context, "/v1/list", q, &l); err != nil {
					return err
				}
				return c.show(l, func() { c.list(&l, x.Bool("all")) })
			},
		},
		{
			Name: "why", Usage: "explain what happens to an address, and why", ArgsUsage: "ADDR",
			Action: func(x *cli.Context) error {
				if err := args(x, 1, 1, "why ADDR"); err != nil {
					return err
				}
				var w control.Why
				if err := c.client.Get(x.Context, "/v1/why", url.Values{"prefix": {x.Args().First()}}, &w); err != nil {
					return err
				}
				return c.show(w, func() { c.why(&w) })
			},
		},
	}
}

func (c *ctl) list(l *control.List, all bool) {
	if l.Total == 0 {
		fmt.Fprintln(c.out, "nothing is blocked")
		return
	}
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, "PREFIX\tCAUSE\tSCOPE\tSINCE\tUNTIL\tHITS\tDROPS\tORIGIN\tREASON")
	if all {
		fmt.Fprint(w, "\tHOLDS")
	}
	fmt.Fprintln(w)
	for _, e := range l.Entries {
		reason := ""
		if e.Reason != "" {
			reason = strconv.Quote(e.Reason)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s", short(e.Entry), e.Cause, e.Scope, when(e.Since), until(e.Until), e.Hits, e.Drops, e.Origin, reason)
		if all {
			holds := "yes"
			if !e.Effective {
				holds = "no (" + string(e.Rule) + ")"
			}
			fmt.Fprintf(w, "\t%s", holds)
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	if n := l.Total - len(l.Entries); n > 0 {
		fmt.Fprintf(c.out, "%d more; --limit 0 lists all\n", n)
	}
}

// maxAlso bounds how many further entries why names.
const maxAlso = 10

// also names the other entries that cover the address: blocks of other nodes or prefixes, and what stands behind the one that
// decides and comes into force when that ends.
func (c *ctl) also(w *control.Why, p func(name, format string, a ...any)) {
	name, more := "also", 0
	for _, e := range w.Entries {
		d, over := &w.Decision, !e.Until.IsZero() && !e.Until.After(w.Now)
		if over && e.Kind != block.Clear || e.Kind == block.Disallow || same(d.By, &e) || same(d.Clear, &e) {
			continue
		}
		if name == "" && more >= maxAlso-1 {
			p("", "more: mxshieldctl -o json why %s", short(block.Entry{Prefix: w.Prefix}))
			return
		}
		switch {
		case e.Kind == block.Clear:
			p(name, "clear %s, origin %s, since %s, hold until %s", e.Prefix, e.Origin, when(e.Since), until(e.Until))
		case e.Kind == block.Block:
			p(name, "block %s (%s), origin %s, since %s, until %s", e.Prefix, e.Cause, e.Origin, when(e.Since), until(e.Until))
		default:
			p(name, "%s %s, origin %s, since %s, until %s", e.Kind, e.Prefix, e.Origin, when(e.Since), until(e.Until))
		}
		name = ""
		more++
	}
}

func same(a, b *block.Entry) bool {
	return a != nil && a.Origin == b.Origin && a.Prefix == b.Prefix && a.Kind == b.Kind && a.Automatic() == b.Automatic() && a.Stamp == b.Stamp
}

// short prints a single address without its length.
func short(e block.Entry) string {
	if e.Prefix.IsSingleIP() {
		return e.Prefix.Addr().String()
	}
	return e.Prefix.String()
}

func (c *ctl) why(w *control.Why) {
	fmt.Fprintln(c.out, w.Words)
	p := func(name, format string, a ...any) {
		fmt.Fprintf(c.out, "  %-10s %s\n", name, fmt.Sprintf(format, a...))
	}
	d := w.Decision
	if e := d.By; e != nil {
		p("entry", "%s %s, origin %s", e.Kind, e.Prefix, e.Origin)
		if e.Kind == block.Block {
			p("cause", "%s", e.Cause)
			p("scope", "%s", e.Scope)
		}
		p("since", "%s", when(e.Since))
		p("until", "%s", until(e.Until))
		if e.Kind == block.Block {
			p("drops", "%d packets", w.Drops)
		}
		if e.Reason != "" {
			p("reason", "%q", e.Reason)
		}
	}
	c.also(w, p)
	printed := map[string]bool{}
	evidence := func(name string, e *control.Evidence) {
		if e == nil {
			return
		}
		p(name, "%s", e.Words)
		p("", "score %.0f of %.0f for %s", e.Score, e.Threshold, e.Prefix)
		kinds := make([]string, 0, len(e.Counts))
		for k := range e.Counts {
			kinds = append(kinds, k)
		}
		sort.Strings(kinds)
		for i, k := range kinds {
			kinds[i] = fmt.Sprintf("%s %d", k, e.Counts[k])
		}
		if len(kinds) > 0 {
			p("", "%s", strings.Join(kinds, ", "))
		}
		// A dictionary attack's lines are often the same once they are redacted, and what was known at the block is known now.
		times := map[string]int{}
		for _, s := range e.Samples {
			times[s]++
		}
		for _, s := range e.Samples {
			if printed[s] {
				continue
			}
			printed[s] = true
			more := ""
			if n := times[s]; n > 1 {
				more = fmt.Sprintf(" (%d times)", n)
			}
			p("", "| %s%s", s, more)
		}
	}
	evidence("evidence", w.Evidence)
	evidence("known", w.Known)
	if w.Lists != "" {
		p("lists", "%s", w.Lists)
	}
	if w.Before != "" {
		p("before", "%s", w.Before)
	}
	for i, h := range w.History {
		name := ""
		if i == 0 {
			name = "history"
		}
		p(name, "%s %s %s by %s%s", when(h.Time), h.Action, h.Prefix, h.Who, colon(h.Detail))
	}
	if w.Unblock != "" {
		p("unblock", "%s", w.Unblock)
	}
	for _, t := range w.Warnings {
		p("WARNING", "%s", t)
	}
}
