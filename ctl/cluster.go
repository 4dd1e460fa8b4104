package main

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mxshield/mxshield/agent/control"
)

func (c *ctl) clusterCommands() []*cli.Command {
	return []*cli.Command{
		{
			Name: "peers", Usage: "show the other nodes of the cluster",
			Description: "ENTRIES is how many entries of a node this one has, LAG how many it lacks. CLOCK is how far the node's clock is ahead\nof this one's. WIRE is the version of the protocol that both speak.",
			Action: func(x *cli.Context) error {
				if err := args(x, 0, 0, "peers"); err != nil {
					return err
				}
				var p control.Peers
				if err := c.client.Get(x.Context, "/v1/peers", nil, &p); err != nil {
					return err
				}
				return c.show(p, func() { c.peers(&p) })
			},
		},
		{
			Name: "cluster", Usage: "the keys of the cluster",
			Subcommands: []*cli.Command{{
				Name: "key", Usage: "make, add, use and remove the keys that the nodes talk with",
				Description: "To change the key: make a new one, `add` it on every node, then `use` it on every node, then `remove` the old one on\nevery node. Keys never go over the wire.",
				Subcommands: c.keyCommands(),
			}},
		},
		{
			Name: "origin", Usage: "what counts of what a node of the cluster says",
			Subcommands: []*cli.Command{
				c.originCommand("suspend", "stop enforcing what a node says, on this node, until `resume`"),
				c.originCommand("resume", "enforce what a node says again"),
				c.originCommand("clear", "undo, on all nodes, all that a node said up to now: blocks, unblocks and allows"),
			},
		},
	}
}

func (c *ctl) originCommand(do, usage string) *cli.Command {
	return &cli.Command{
		Name: do, Usage: usage, ArgsUsage: "NODE",
		Action: func(x *cli.Context) error {
			if err := args(x, 1, 1, "origin "+do+" NODE"); err != nil {
				return err
			}
			return c.change(x, "/v1/origin", control.OriginRequest{Do: do, Node: x.Args().First()})
		},
	}
}

func (c *ctl) keyCommands() []*cli.Command {
	force := &cli.BoolFlag{Name: "force", Usage: "even if a node may be cut off"}
	change := func(do, usage string) *cli.Command {
		return &cli.Command{
			Name: do, Usage: usage, ArgsUsage: "ID", Flags: []cli.Flag{force},
			Action: func(x *cli.Context) error {
				if err := args(x, 1, 1, "cluster key "+do+" ID [--force]"); err != nil {
					return err
				}
				return c.change(x, "/v1/cluster/key", control.KeyRequest{Do: do, ID: x.Args().First(), Force: x.Bool("force")})
			},
		}
	}
	return []*cli.Command{
		{
			Name: "new", Usage: "make a key and print it; needs no agent",
			Description: "mxshieldctl cluster key new > /etc/mxshield/cluster.key makes the key file of a new cluster, with mode 0600. Copy it to\nevery node.",
			Action: func(x *cli.Context) error {
				if err := args(x, 0, 0, "cluster key new"); err != nil {
					return err
				}
				if err := keepPrivate(c.out); err != nil {
					return err
				}
				k := newKey()
				return c.show(struct {
					Key string `json:"key"`
				}{k}, func() { fmt.Fprintln(c.out, k) })
			},
		},
		{
			Name: "add", Usage: "let this node understand a further key", ArgsUsage: "[FILE]",
			Description: "The key is read from FILE, or from standard input: on the command line others could see it.",
			Action: func(x *cli.Context) error {
				if err := args(x, 0, 1, "cluster key add [FILE]"); err != nil {
					return err
				}
				k, err := readKey(x.Args().First())
				if err != nil {
					return err
				}
				return c.change(x, "/v1/cluster/key", control.KeyRequest{Do: "add", Key: k})
			},
		},
		change("use", "seal what this node says with a key; refused until all nodes have it"),
		change("remove", "forget a key; refused until no node uses it"),
		{
			Name: "list", Usage: "list the keys and who has them",
			Action: func(x *cli.Context) error {
				if err := args(x, 0, 0, "cluster key list"); err != nil {
					return err
				}
				var k control.Keys
				if err := c.client.Get(x.Context, "/v1/cluster/keys", nil, &k); err != nil {
					return err
				}
				return c.show(k, func() { c.keys(k.Keys) })
			},
		},
	}
}

// newKey makes a cluster key: base64 of 32 random bytes.
func newKey() string {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return base64.StdEncoding.EncodeToString(b)
}

// keepPrivate takes the rights of others off the file that the output was redirected to: the shell made it with the
// usual mode, and the agent refuses a key that others may have read.
func keepPrivate(w io.Writer) error {
	f, ok := w.(*os.File)
	if !ok {
		return nil
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() || st.Mode().Perm()&0o077 == 0 {
		return nil // a terminal or a pipe
	}
	if err := f.Chmod(0o600); err != nil {
		return fmt.Errorf("keep others from reading the key: %w", err)
	}
	return nil
}

const maxKeyInput = 1024

// readKey reads a key from a file, or from standard input.
func readKey(path string) (string, error) {
	var from io.Reader = os.Stdin
	if path != "" && path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", fmt.Errorf("read the key: %w", err)
		}
		defer f.Close()
		from = f
	}
	b, err := io.ReadAll(io.LimitReader(from, maxKeyInput+1))
	if err != nil {
		return "", fmt.Errorf("read the key: %w", err)
	}
	k := strings.TrimSpace(string(b))
	if k == "" || len(b) > maxKeyInput || strings.ContainsAny(k, "\n\r") {
		return "", &usageError{"there is not one key in one line", "`mxshieldctl cluster key new` makes one"}
	}
	return k, nil
}

func (c *ctl) keys(list []control.Key) {
	if len(list) == 0 {
		fmt.Fprintln(c.out, "this node's cluster has no key")
		return
	}
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KEY\tHERE\tHELD BY\tUSED BY\tMISSING ON")
	for _, k := range list {
		here := "no"
		if k.Used {
			here = "used"
		} else if k.Held {
			here = "held"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", k.ID, here, names(k.HeldBy), names(k.UsedBy), names(k.Missing))
	}
	w.Flush()
}

func names(list []string) string {
	const most = 8
	switch {
	case len(list) == 0:
		return "-"
	case len(list) > most:
		return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ","), len(list)-most)
	}
	return strings.Join(list, ",")
}

func (c *ctl) peers(p *control.Peers) {
	if !p.Clustered {
		fmt.Fprintln(c.out, "this node is alone: the config has no cluster")
		return
	}
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tSTATE\tADDRESS\tENTRIES\tLAG\tCLOCK\tRTT\tKEY\tAGENT\tWIRE")
	for _, m := range p.Members {
		state := m.State
		if m.Self {
			state = "this node"
		}
		if m.Suspended {
			state += ", SUSPENDED"
		}
		clock, rtt, wire, lag := "-", "-", "-", fmt.Sprint(m.Lag)
		if m.ClockOffset != nil {
			clock = fmt.Sprintf("%+.3fs", *m.ClockOffset)
		}
		if m.RTT != nil {
			rtt = time.Duration(*m.RTT * float64(time.Second)).Round(10 * time.Microsecond).String()
		}
		if m.Wire > 0 {
			wire = fmt.Sprint(m.Wire)
		}
		if m.Self {
			lag = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n", m.Name, state, dash(m.Addr), m.Entries, lag, clock, rtt, dash(m.Key), dash(m.Version), wire)
	}
	w.Flush()
	if p.Addr == "" {
		fmt.Fprintln(c.out, "the cluster's port is not open yet: mxshieldctl status says why")
	}
	if !p.Encrypted {
		fmt.Fprintln(c.out, "not encrypted: loopback only")
	}
	var odd []string
	for _, k := range []string{"refused", "malformed", "stranger", "busy", "inbox_full", "queue_full", "unsent", "messages_malformed", "entries_refused", "entries_early", "unknown_version", "unknown_kind", "unknown_records", "conflicts", "evidence_dropped"} {
		if n := p.Counters[k]; n > 0 {
			odd = append(odd, fmt.Sprintf("%s %d", k, n))
		}
	}
	if len(odd) > 0 {
		fmt.Fprintf(c.out, "since the agent started: %s\n", strings.Join(odd, ", "))
	}
	for w := range slices.Values(p.Warnings) {
		fmt.Fprintf(c.out, "WARNING: %s\n", w)
	}
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
