package main

import (
	"cmp"
	"fmt"
	"net/url"
	"slices"
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
				&cli.StringFlag{Name: "cause", Usage: "only this `CAUSE`: dictionary, manual, ..."},
				&cli.StringFlag{Name: "origin", Usage: "only what this `NODE` of the cluster made"},
				&cli.StringFlag{Name: "sort", Value: "since", Usage: "by since, until, drops, hits or prefix: a `COLUMN`"},
				&cli.BoolFlag{Name: "all", Usage: "also blocks that have ended, are cancelled or overridden"},
				&cli.IntFlag{Name: "limit", Value: 1000, Usage: "at most `N` rows; 0 for all"},
			},
			Action: func(x *cli.Context) error {
				if err := args(x, 0, 1, "list [PREFIX]"); err != nil {
					return err
				}
				less, ok := orders[x.String("sort")]
				if !ok {
					return &usageError{fmt.Sprintf("--sort %.40q is no column", x.String("sort")), "since, until, drops, hits or prefix"}
				}
				limit := x.Int("limit")
				q := url.Values{"limit": {strconv.Itoa(limit)}, "cause": {x.String("cause")}, "origin": {x.String("origin")}}
				if less != nil {
					q.Set("limit", "0") // the agent gives the newest
				}
				if x.NArg() == 1 {
					q.Set("within", address(x.Args().First()))
				}
				if x.Bool("all") {
					q.Set("all", "1")
				}
				var l control.List
				if err := c.client.Get(x.Context, "/v1/list", q, &l); err != nil {
					return err
				}
				whole := len(l.Entries) == l.Total
				if less != nil {
					slices.SortStableFunc(l.Entries, less)
					if limit > 0 && limit < len(l.Entries) {
						l.Entries = l.Entries[:limit]
					}
				}
				filtered := x.NArg() > 0 || x.IsSet("cause") || x.IsSet("origin")
				return c.show(l, func() {
					c.list(&l, x.Bool("all"), filtered)
					n := l.Total - len(l.Entries)
					switch {
					case n > 0 && !whole && (less != nil || limit == 0): // there are more than the agent gives at once
						fmt.Fprintf(c.out, "%d more, of which the oldest were not looked at; a PREFIX, --cause or --origin makes them fewer\n", n)
					case n > 0:
						fmt.Fprintf(c.out, "%d more; --limit 0 lists all\n", n)
					}
				})
			},
		},
		{
			Name: "why", Usage: "explain what happens to addresses, and why", ArgsUsage: "ADDR...",
			Description: "Blocked or not, by what, since when, until when, on which evidence, and how to undo it. A host's name stands for its\naddresses.",
			Action: func(x *cli.Context) error {
				if err := args(x, 1, -1, "why ADDR..."); err != nil {
					return err
				}
				return c.each(x, func(a string) error {
					var w control.Why
					if err := c.client.Get(x.Context, "/v1/why", url.Values{"prefix": {a}}, &w); err != nil {
						return err
					}
					return c.show(w, func() { c.why(&w) })
				})
			},
		},
	}
}

// orders of list, the first row first; since is the agent's own.
var orders = map[string]func(a, b control.Listed) int{
	"since": nil,
	"until": func(a, b control.Listed) int {
		if a.Until.IsZero() != b.Until.IsZero() { // no end is last
			return -a.Until.Compare(b.Until)
		}
		return a.Until.Compare(b.Until)
	},
	"drops":  func(a, b control.Listed) int { return cmp.Compare(b.Drops, a.Drops) },
	"hits":   func(a, b control.Listed) int { return cmp.Compare(b.Hits, a.Hits) },
	"prefix": func(a, b control.Listed) int { return a.Prefix.Compare(b.Prefix) },
}

func (c *ctl) list(l *control.List, all, filtered bool) {
	if l.Total == 0 {
		if filtered {
			fmt.Fprintln(c.out, "no block matches")
		} else {
			fmt.Fprintln(c.out, "nothing is blocked")
		}
		return
	}
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprint(w, zoned("PREFIX\tCAUSE\tSCOPE\tSINCE\tUNTIL\tHITS\tDROPS\tORIGIN\tREASON"))
	if all {
		fmt.Fprint(w, "\tHOLDS")
	}
	fmt.Fprintln(w)
	for _, e := range l.Entries {
		reason := ""
		if e.Reason != "" {
			reason = strconv.Quote(e.Reason)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s", short(e.Entry), e.Cause, e.Scope, column(e.Since), columnUntil(e.Until), e.Hits, e.Drops, e.Origin, reason)
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
		p(name, "%s", entryWords(&e))
		name = ""
		more++
	}
}

// entryWords is an entry in one line.
func entryWords(e *block.Entry) string {
	switch e.Kind {
	case block.Clear:
		return fmt.Sprintf("clear %s, origin %s, since %s, hold until %s", e.Prefix, e.Origin, when(e.Since), until(e.Until))
	case block.Block:
		return fmt.Sprintf("block %s (%s, scope %s), origin %s, since %s, until %s", e.Prefix, e.Cause, e.Scope, e.Origin, when(e.Since), until(e.Until))
	}
	return fmt.Sprintf("%s %s, origin %s, since %s, until %s", e.Kind, e.Prefix, e.Origin, when(e.Since), until(e.Until))
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
		switch {
		case d.Drop: // the sentence says the rest
			p("entry", "block %s (%s, scope %s), origin %s", e.Prefix, e.Cause, e.Scope, e.Origin)
			p("drops", "%d packets", w.Drops)
		case e.Kind == block.Block: // by a clear, an allow or a rule
			p("overruled", "%s", entryWords(e))
		default:
			p("entry", "%s", entryWords(e))
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
