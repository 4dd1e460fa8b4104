package main

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/control"
)

var (
	forFlag    = &cli.StringFlag{Name: "for", Usage: "`D`: for example 90m, 72h, 3d, forever"}
	reasonFlag = &cli.StringFlag{Name: "reason", Usage: "`TEXT` for the colleagues; stays on this host"}
)

func (c *ctl) blockCommands() []*cli.Command {
	return []*cli.Command{
		{
			Name: "block", Usage: "block an address or CIDR", ArgsUsage: "PREFIX",
			Description: "A bare IPv6 address blocks itself only; append /64 for the network. The default time is block.for of the config.",
			Flags:       []cli.Flag{forFlag, reasonFlag},
			Action:      func(x *cli.Context) error { return c.enter(x, "block", "/v1/block") },
		},
		{
			Name: "unblock", Usage: "end all blocks of addresses or CIDRs, on all nodes, and hold them against automatic blocks", ArgsUsage: "PREFIX...",
			Description: "Any width will do: an address inside a blocked CIDR, or a CIDR over many blocks.",
			Flags: []cli.Flag{
				&cli.StringFlag{Name: "hold", Value: "1h", Usage: "`D`: how long no automatic block is made; 0s for none"},
				reasonFlag,
			},
			Action: func(x *cli.Context) error {
				if err := args(x, 1, -1, "unblock PREFIX... [--hold D]"); err != nil {
					return err
				}
				list, err := c.addresses(x.Context, "unblock", x.Args().Slice())
				if err != nil {
					return err
				}
				return c.change(x, "/v1/unblock", control.UnblockRequest{Prefixes: list, Hold: x.String("hold"), Reason: x.String("reason")})
			},
		},
	}
}

// enter makes an entry for a prefix.
func (c *ctl) enter(x *cli.Context, command, path string) error {
	if err := args(x, 1, 1, command+" PREFIX [--for D] [--reason TEXT]"); err != nil {
		return err
	}
	p, err := c.addresses(x.Context, command, x.Args().Slice())
	if err != nil {
		return err
	}
	return c.change(x, path, control.BlockRequest{Prefix: p[0], For: x.String("for"), Reason: x.String("reason")})
}

func (c *ctl) allowCommands() []*cli.Command {
	return []*cli.Command{{
		Name: "allow", Usage: "prefixes that are never blocked automatically",
		Subcommands: []*cli.Command{
			{
				Name: "add", Usage: "allow an address or CIDR", ArgsUsage: "PREFIX", Flags: []cli.Flag{forFlag, reasonFlag},
				Action: func(x *cli.Context) error { return c.enter(x, "allow add", "/v1/allow") },
			},
			{
				Name: "remove", Usage: "take an allow back", ArgsUsage: "PREFIX",
				Action: func(x *cli.Context) error {
					if err := args(x, 1, 1, "allow remove PREFIX"); err != nil {
						return err
					}
					return c.change(x, "/v1/disallow", control.BlockRequest{Prefix: address(x.Args().First())})
				},
			},
			{
				Name: "list", Usage: "list the allows, those of the config file included",
				Flags: []cli.Flag{&cli.BoolFlag{Name: "all", Usage: "also what is never blocked without being asked for: own addresses, private ranges, ..."}},
				Action: func(x *cli.Context) error {
					if err := args(x, 0, 0, "allow list [--all]"); err != nil {
						return err
					}
					var l control.List
					if err := c.client.Get(x.Context, "/v1/list", url.Values{"kind": {"allow"}}, &l); err != nil {
						return err
					}
					var s control.Status
					if err := c.client.Get(x.Context, "/v1/status", nil, &s); err != nil {
						return err
					}
					config := []block.Never{}
					for _, n := range s.Never {
						if n.Config || x.Bool("all") {
							config = append(config, n)
						}
					}
					v := struct {
						Config  []block.Never    `json:"config"`
						Senders []control.Sender `json:"senders"`
						Allows  []control.Listed `json:"allows"`
					}{config, s.Senders, l.Entries}
					return c.show(v, func() {
						if len(config)+len(l.Entries)+len(s.Senders) == 0 {
							fmt.Fprintln(c.out, "nothing is allowed beyond what is never blocked anyway (--all lists that)")
							return
						}
						w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
						fmt.Fprintln(w, zoned("PREFIX\tSINCE\tUNTIL\tORIGIN\tREASON"))
						for _, n := range config {
							by := "built in"
							if n.Config {
								by = "config"
							}
							fmt.Fprintf(w, "%s\t-\t%s\t%s\t%s\n", n.Prefix, noEnd, by, n.Rule)
						}
						for _, r := range s.Senders {
							fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.Rule, refreshed(&r), noEnd, senderOrigin(&r), senderState(&r))
						}
						for _, e := range l.Entries {
							fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", short(e.Entry), column(e.Since), columnUntil(e.Until), e.Origin, strconv.Quote(e.Reason))
						}
						w.Flush()
					})
				},
			},
		},
	}}
}

// refreshed is since when what is known of an allow by name is known.
func refreshed(r *control.Sender) string {
	if r.Refreshed.IsZero() {
		return "-"
	}
	return column(r.Refreshed)
}

func senderOrigin(r *control.Sender) string {
	if r.Preset {
		return "big senders"
	}
	return "config"
}

// senderState says what is known of an allow by name.
func senderState(r *control.Sender) string {
	t := fmt.Sprintf("%d ranges known", r.Ranges)
	if strings.HasPrefix(r.Rule, "domain:") {
		t = fmt.Sprintf("%d addresses proved", r.Ranges)
	}
	if r.Error != "" {
		t += "; " + r.Error
	}
	return t
}

// aftermath says what there is to know beside a change: who else hears of it, and whether packets are dropped at all.
func (c *ctl) aftermath(x *cli.Context, results []block.Result) {
	var s control.Status
	if len(results) == 0 || c.client.Get(x.Context, "/v1/status", nil, &s) != nil {
		return
	}
	if k := s.Cluster; k != nil && k.Peers > 0 {
		late := ""
		if k.Alive < k.Peers {
			late = "; the others hear of it when they are back"
		}
		fmt.Fprintf(c.out, "  the other nodes are told: %d of %d alive (mxshieldctl peers)%s\n", k.Alive, k.Peers, late)
	}
	if results[0].Entry.Kind != block.Block {
		return
	}
	switch {
	case s.Off != nil:
		fmt.Fprintln(c.out, "  WARNING: the shield is OFF: its packets pass until `mxshieldctl on`")
	case s.DryRun:
		fmt.Fprintln(c.out, "  WARNING: this is a dry run: its packets pass")
	}
}

// change posts a request and prints what came of it.
func (c *ctl) change(x *cli.Context, path string, req any) error {
	var d control.Done
	if err := c.client.Post(x.Context, path, req, &d); err != nil {
		return err
	}
	return c.show(d, func() {
		if d.Words != "" {
			fmt.Fprintln(c.out, d.Words)
		}
		for i := range d.Results {
			c.result(&d.Results[i])
		}
		c.aftermath(x, d.Results)
	})
}

func endWords(t time.Time) string {
	if t.IsZero() {
		return "without end"
	}
	return "until " + when(t)
}

func (c *ctl) result(r *block.Result) {
	e := &r.Entry
	switch e.Kind {
	case block.Block:
		verb := "is blocked"
		if r.Already {
			verb = "was blocked already; now"
		}
		on := "the mx ports"
		if e.Scope == block.ScopeAll {
			on = "the mx and submission ports"
		}
		fmt.Fprintf(c.out, "%s %s %s, on %s\n", short(*e), verb, endWords(e.Until), on)
	case block.Allow:
		fmt.Fprintf(c.out, "%s is allowed %s\n", short(*e), endWords(e.Until))
	case block.Disallow:
		fmt.Fprintf(c.out, "%s is no longer allowed\n", short(*e))
	case block.Clear:
		if r.CancelledTotal == 0 {
			fmt.Fprintf(c.out, "%s was not blocked here; ", short(*e))
		} else {
			fmt.Fprintf(c.out, "%s is unblocked; ", short(*e))
		}
		fmt.Fprintf(c.out, "held against automatic blocks until %s\n", when(e.Until))
	}
	for i := range r.Cancelled {
		b := &r.Cancelled[i]
		how := "cancelled"
		if e.Prefix.Bits() > b.Prefix.Bits() {
			how = "no longer covers it"
		}
		fmt.Fprintf(c.out, "  block %s (%s since %s) %s\n", b.Prefix, b.Cause, when(b.Since), how)
		if i == 9 && r.CancelledTotal > 10 {
			fmt.Fprintf(c.out, "  and %d more\n", r.CancelledTotal-10)
			break
		}
	}
	for i := range r.Overridden {
		b := &r.Overridden[i]
		fmt.Fprintf(c.out, "  block %s (%s since %s) does not hold while this lasts; unblock ends it for good\n", b.Prefix, b.Cause, when(b.Since))
		if i == 9 && r.OverriddenTotal > 10 {
			fmt.Fprintf(c.out, "  and %d more\n", r.OverriddenTotal-10)
			break
		}
	}
	for i := range r.Remaining {
		b := &r.Remaining[i]
		fmt.Fprintf(c.out, "  block %s (%s since %s) still holds: it is more specific; unblock ends it\n", b.Prefix, b.Cause, when(b.Since))
		if i == 9 && r.RemainingTotal > 10 {
			fmt.Fprintf(c.out, "  and %d more\n", r.RemainingTotal-10)
			break
		}
	}
	if !r.Held.IsZero() && r.Held.After(e.Until) {
		fmt.Fprintf(c.out, "  an earlier hold goes on until %s\n", when(r.Held))
	}
	if b := r.Then; b != nil {
		fmt.Fprintf(c.out, "  then block %s (%s since %s) goes on %s; unblock ends both\n", b.Prefix, b.Cause, when(b.Since), endWords(b.Until))
	}
	for _, n := range r.Open {
		fmt.Fprintf(c.out, "  %s inside it stays open: %s\n", n.Prefix, n.Rule)
	}
	if r.Unenforced != "" {
		fmt.Fprintf(c.out, "  WARNING: the kernel does not have it yet: %s\n", r.Unenforced)
	}
}
