package main

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"github.com/mxshield/mxshield/agent/control"
)

func (c *ctl) topCommands() []*cli.Command {
	return []*cli.Command{{
		Name: "top", Usage: "show whose packets are dropped right now",
		Description: "Rates are estimates out of samples (one of about 1024 dropped packets), averages of some ten seconds. DROPS is exact, and of the whole block.",
		Flags:       []cli.Flag{&cli.IntFlag{Name: "limit", Value: 20, Usage: "at most `N` rows"}},
		Action: func(x *cli.Context) error {
			if err := args(x, 0, 0, "top"); err != nil {
				return err
			}
			var t control.Top
			if err := c.client.Get(x.Context, "/v1/top", url.Values{"limit": {strconv.Itoa(x.Int("limit"))}}, &t); err != nil {
				return err
			}
			return c.show(t, func() { c.top(&t) })
		},
	}}
}

func (c *ctl) top(t *control.Top) {
	if len(t.Talkers) == 0 {
		fmt.Fprintf(c.out, "no dropped packet was sampled in the last minute (one of %d is); `mxshieldctl list` counts the drops of each block\n", t.SampleEvery)
		return
	}
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SOURCE\tPACKETS/S\tREASON\tPORTS\tLAST\tDROPS\tBLOCK")
	for _, k := range t.Talkers {
		var names []string
		for p := range slices.Values(k.Ports) {
			names = append(names, strconv.Itoa(int(p)))
		}
		block, drops := "-", "-"
		if k.Block.IsValid() {
			block, drops = bare(k.Block)+" "+k.Cause, strconv.FormatUint(k.Drops, 10)
		}
		fmt.Fprintf(w, "%s\t%.0f\t%s\t%s\t%s ago\t%s\t%s\n", bare(k.Source), k.Rate, rates(k.Reasons), strings.Join(names, ","), ago(t.Now.Sub(k.Last)), drops, block)
	}
	w.Flush()
	fmt.Fprintf(c.out, "all together, per second: %s\n", rates(t.Reasons))
	if t.Lost > 0 {
		fmt.Fprintf(c.out, "%d samples were lost because the agent was busy\n", t.Lost)
	}
}

// rates prints reasons, the most frequent first.
func rates(m map[string]float64) string {
	keys := slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		if r := cmp.Compare(m[b], m[a]); r != 0 {
			return r
		}
		return cmp.Compare(a, b)
	})
	for i, k := range keys {
		name := strings.TrimPrefix(k, "drop_")
		keys[i] = name
		if len(m) > 1 {
			keys[i] = fmt.Sprintf("%s %.0f", name, m[k])
		}
	}
	return strings.Join(keys, ", ")
}

// bare prints a single address without its length.
func bare(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}
