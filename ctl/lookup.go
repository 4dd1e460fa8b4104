package main

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/mxshield/mxshield/agent/control"
)

func (c *ctl) lookupCommands() []*cli.Command {
	return []*cli.Command{{
		Name: "lookup", Usage: "ask all DNS lists and the reverse DNS about addresses now", ArgsUsage: "ADDR...",
		Description: "One page for a ticket: what each list answers and what that means, where to ask for removal, the\n" +
			"reverse names and whether they lead back, by which rule it is allowed, and what the shield does with it.",
		Action: func(x *cli.Context) error {
			if err := args(x, 1, -1, "lookup ADDR..."); err != nil {
				return err
			}
			return c.each(x, func(a string) error {
				var l control.Lookup
				if err := c.client.Get(x.Context, "/v1/lookup", url.Values{"address": {a}}, &l); err != nil {
					return err
				}
				return c.show(l, func() { c.lookup(&l) })
			})
		},
	}, {
		Name: "reputation", Usage: "show on which DNS lists own addresses are, and were in the last year", ArgsUsage: "[ADDR]",
		Description: "Of those that dns.own in the config names. Without ADDR of all of them.",
		Flags:       []cli.Flag{&cli.IntFlag{Name: "limit", Value: 50, Usage: "at most `N` events"}},
		Action: func(x *cli.Context) error {
			if err := args(x, 0, 1, "reputation [ADDR]"); err != nil {
				return err
			}
			q := url.Values{"limit": {strconv.Itoa(x.Int("limit"))}}
			if x.NArg() == 1 {
				q.Set("address", x.Args().First())
			}
			var r control.Reputation
			if err := c.client.Get(x.Context, "/v1/reputation", q, &r); err != nil {
				return err
			}
			return c.show(r, func() { c.reputation(&r, x.NArg() == 1) })
		},
	}}
}

// reputation prints a line per address and listing; of one address, of every list.
func (c *ctl) reputation(r *control.Reputation, all bool) {
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, zoned("ADDRESS\tLIST\tSAYS\tSINCE\tCHECKED"))
	for _, o := range r.Own {
		good, unknown, rows := 0, 0, 0
		for _, l := range o.Lists {
			if l.Why != "" {
				unknown++
			} else if l.Says != "listed" {
				good++
			}
			if !all && l.Says != "listed" {
				continue
			}
			says := l.Says
			if l.Says == "listed" {
				says = "LISTED"
			}
			if l.Words != "" {
				says += " (" + l.Words + ")"
			}
			if l.Why != "" {
				says += "; now not known: " + l.Why
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", o.Address, l.Zone, says, column(l.Since), column(l.Checked))
			rows++
		}
		if rows == 0 {
			says := fmt.Sprintf("on none of %d lists", good)
			if o.Asked.IsZero() {
				says = "not asked yet"
			} else if unknown > 0 {
				says += fmt.Sprintf(", %d could not be asked", unknown)
			}
			fmt.Fprintf(w, "%s\t-\t%s\t\t%s\n", o.Address, says, column(o.Asked))
		}
	}
	w.Flush()
	if len(r.Events) == 0 {
		return
	}
	fmt.Fprintln(c.out)
	w = tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, zoned("WHEN\tADDRESS\tWHAT\tLIST\tCODES\tMEANING"))
	for _, e := range r.Events {
		var codes []string
		for _, a := range e.Codes {
			codes = append(codes, a.String())
		}
		meaning := e.Words
		if e.TXT != "" {
			meaning += " " + strconv.Quote(e.TXT)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", column(e.Time), e.Address, e.What, e.List, strings.Join(codes, " "), meaning)
	}
	w.Flush()
}

func (c *ctl) lookup(l *control.Lookup) {
	p := func(name, format string, a ...any) {
		fmt.Fprintf(c.out, "%-10s %s\n", name, fmt.Sprintf(format, a...))
	}
	p("address", "%s, asked by %s at %s", l.Address, l.Node, l.Now.UTC().Format("2006-01-02 15:04:05 UTC"))
	p("shield", "%s", l.Words)
	if l.Allowed != "" {
		p("allowed", "by %s", l.Allowed)
	}
	name := "name"
	for _, n := range l.Names {
		text := "leads back to the address"
		if !n.Verified {
			text = "DOES NOT lead back to the address"
		}
		p(name, "%s, %s", plain(n.Name), text)
		name = ""
	}
	switch {
	case l.RDNS == "temporary":
		p(name, "the reverse names could not all be found out just now")
	case len(l.Names) == 0:
		p(name, "none")
	}
	for _, r := range l.Lists {
		t := plain(r.Zone) + ": "
		switch r.Says {
		case "clean":
			t += "not listed"
		case "no_ipv6":
			t += "not asked, it has no IPv6"
		case "unknown":
			t += "not known: " + r.Why
		default:
			var codes []string
			for _, a := range r.Codes {
				codes = append(codes, a.String())
			}
			says := map[string]string{"listed": "LISTED", "welcome": "welcome", "neutral": "neutral"}[r.Says]
			t += fmt.Sprintf("%s, %s", says, strings.Join(codes, " "))
			if r.Words != "" {
				t += " (" + r.Words + ")"
			}
			t += ", " + points(r.Points)
		}
		p("list", "%s", t)
		if r.TXT != "" {
			p("", "%s", strconv.Quote(r.TXT))
		}
		if r.Page != "" {
			p("", "see %s", r.Page)
		}
	}
	if len(l.Lists) > 0 {
		p("sum", "%s of the %g that block", points(l.Sum), l.Threshold)
	}
	for _, w := range l.Warnings {
		p("note", "%s", w)
	}
}

func points(n float64) string {
	if n == 0 {
		return "0 points"
	}
	return fmt.Sprintf("%+g points", n)
}

// plain is a name as it stands if it is harmless, else quoted: others wrote it.
func plain(s string) string {
	if strings.Trim(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz0123456789-_./") == "" {
		return s
	}
	return strconv.Quote(s)
}
