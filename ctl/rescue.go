package main

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/bpf"
)

// agentPatience is how long off waits for the agent before it does it itself: somebody who is locked out must not
// wait for an agent that hangs. Nothing is urgent about on.
const agentPatience = 3 * time.Second

func (c *ctl) rescueCommands() []*cli.Command {
	where := []cli.Flag{
		&cli.StringFlag{Name: "pins", Value: bpf.DefaultPins, Usage: "folder of the pinned kernel objects (pins in the config)"},
		&cli.StringFlag{Name: "state-dir", Value: control.DefaultStateDir, Usage: "folder of the state file (state in the config)"},
	}
	return []*cli.Command{
		{
			Name: "off", Usage: "stop dropping now, with or without an agent, until `on`",
			Description: "Detaches the program from all interfaces and leaves a marker, so that an agent that starts stays detached.\nBlocks are kept. With --purge the pinned maps go too: the agent fills new ones from its state file.",
			Flags: append([]cli.Flag{
				reasonFlag,
				&cli.BoolFlag{Name: "purge", Usage: "remove the pinned maps and programs too (mends foreign or stale pins)"},
			}, where...),
			Action: func(x *cli.Context) error {
				if err := args(x, 0, 0, "off [--reason TEXT] [--purge]"); err != nil {
					return err
				}
				return c.off(x)
			},
		},
		{
			Name: "on", Usage: "end `off`: attach again, with or without an agent", Flags: where,
			Action: func(x *cli.Context) error {
				if err := args(x, 0, 0, "on"); err != nil {
					return err
				}
				return c.on(x)
			},
		},
	}
}

func (c *ctl) off(x *cli.Context) error {
	client := control.NewClient(x.String("socket"), agentPatience)
	var d control.Done
	err := client.Post(x.Context, "/v1/off", control.OffRequest{Reason: x.String("reason")}, &d)
	if err == nil && !x.Bool("purge") {
		return c.show(d, func() { fmt.Fprintln(c.out, d.Words) })
	}
	agent := "no agent answered"
	if err == nil {
		agent = "the agent is detached too"
	}
	// The marker first: an agent that starts in this instant must find it.
	m := &control.Marker{Off: control.Off{Since: time.Now(), By: whoami(), Reason: x.String("reason")}}
	if old, rerr := control.ReadMarker(x.String("state-dir")); rerr == nil && old != nil {
		m.Interfaces = old.Interfaces
	}
	merr := control.WriteMarker(x.String("state-dir"), m)
	was, oerr := bpf.Off(x.String("pins"), x.Bool("purge"))
	for _, a := range was {
		m.Interfaces = append(m.Interfaces, control.Interface{Name: a.Interface, Mode: string(a.Mode)})
	}
	if x.Bool("purge") {
		m.Interfaces = nil // nothing is left that `on` could attach without an agent
	}
	if merr == nil && (len(was) > 0 || x.Bool("purge")) {
		merr = control.WriteMarker(x.String("state-dir"), m)
	}
	if err := errors.Join(oerr, merr); err != nil {
		return err
	}
	d.Words = fmt.Sprintf("off: detached from %d interfaces; %s; `mxshieldctl on` ends it", len(was), agent)
	if len(was) == 0 && err != nil {
		d.Words += fmt.Sprintf("\nnothing of mxshield is attached by way of %s: if the config has other pins, name them with --pins", x.String("pins"))
	}
	if x.Bool("purge") {
		d.Words += "\nthe pinned maps are gone; restart the agent to have new ones filled from its state file"
	}
	return c.show(d, func() { fmt.Fprintln(c.out, d.Words) })
}

func (c *ctl) on(x *cli.Context) error {
	var d control.Done
	err := c.client.Post(x.Context, "/v1/on", struct{}{}, &d)
	var answer *control.Error
	switch {
	case err == nil:
		return c.show(d, func() { fmt.Fprintln(c.out, d.Words) })
	case !errors.Is(err, control.ErrUnreachable) && errors.As(err, &answer): // or is busy
		return err // the agent is there and says why it cannot
	}
	dir := x.String("state-dir")
	m, err := control.ReadMarker(dir)
	if err != nil {
		return err
	}
	if m == nil {
		d.Words = "it was not off; no agent answered, start mxshield-agent to attach"
		return c.show(d, func() { fmt.Fprintln(c.out, d.Words) })
	}
	var want []bpf.Attachment
	for _, i := range m.Interfaces {
		want = append(want, bpf.Attachment{Interface: i.Name, Mode: bpf.Mode(i.Mode)})
	}
	if err := control.RemoveMarker(dir); err != nil {
		return err
	}
	d.Words = "on: the marker is gone; start mxshield-agent to attach"
	if len(want) > 0 {
		got, err := bpf.On(x.String("pins"), want)
		if err != nil {
			return fmt.Errorf("the marker is gone, but attaching without an agent failed: %w", err)
		}
		d.Words = fmt.Sprintf("on: attached to %d interfaces with the blocks that were there; no agent answered, start mxshield-agent for new ones", len(got))
	}
	return c.show(d, func() { fmt.Fprintln(c.out, d.Words) })
}

func whoami() string {
	if u, err := user.Current(); err == nil {
		return fmt.Sprintf("%s (uid %s)", u.Username, u.Uid)
	}
	return fmt.Sprintf("uid %d", os.Getuid())
}
