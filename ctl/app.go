package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/mxshield/mxshield/agent/control"
)

// Exit codes, as in the package documentation.
const (
	exitOK, exitFailed, exitUsage, exitNoAgent, exitRefused = 0, 1, 2, 3, 4
)

// usageError is a fault of the command line.
type usageError struct{ text, hint string }

func (e *usageError) Error() string    { return e.text }
func (e *usageError) HintText() string { return e.hint }

// ctl is what every command needs.
type ctl struct {
	out    io.Writer
	err    io.Writer
	client *control.Client
	json   bool
	// resolve returns the addresses of a host's name.
	resolve func(ctx context.Context, name string) ([]string, error)
}

// run is the whole program but for the process: tests call it too.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c := &ctl{out: stdout, err: stderr, resolve: lookUp}
	app := c.app()
	args, err := flagsFirst(app, args)
	if err == nil {
		err = app.RunContext(ctx, args)
	}
	if err == nil {
		return exitOK
	}
	control.PrintError(stderr, err)
	var usage *usageError
	var answer *control.Error
	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.Is(err, control.ErrUnreachable):
		return exitNoAgent
	case errors.As(err, &answer) && answer.Status == http.StatusConflict:
		return exitRefused
	case errors.As(err, &answer) && answer.Status == http.StatusBadRequest:
		return exitUsage
	}
	return exitFailed
}

func (c *ctl) app() *cli.App {
	output := &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "table", Usage: "`FORMAT`: table or json"}
	app := &cli.App{
		Name:            "mxshieldctl",
		Usage:           "list, explain and undo the blocks of mxshield",
		Version:         control.Version(),
		HideHelpCommand: false,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "socket", Value: control.DefaultSocket, Usage: "control socket of the agent", EnvVars: []string{"MXSHIELD_SOCKET"}},
			&cli.DurationFlag{Name: "timeout", Value: 30 * time.Second, Usage: "how long to wait for the agent"},
			output,
		},
		Writer: c.out, ErrWriter: c.err,
		EnableBashCompletion: true,
		ExitErrHandler:       func(*cli.Context, error) {}, // exits stand in main alone
		OnUsageError: func(x *cli.Context, err error, _ bool) error {
			return &usageError{err.Error(), helpOf(x)}
		},
		Before: func(x *cli.Context) error {
			c.client = control.NewClient(x.String("socket"), x.Duration("timeout"))
			return nil
		},
		Action: func(x *cli.Context) error {
			if x.NArg() > 0 {
				return noCommand(x, x.App.Commands)
			}
			return cli.ShowAppHelp(x)
		},
		Commands: slices.Concat(c.statusCommands(), c.listCommands(), c.lookupCommands(), c.topCommands(), c.blockCommands(), c.allowCommands(), c.clusterCommands(), c.rescueCommands(), c.completionCommands()),
	}
	for _, cmd := range app.Commands {
		c.prepare(app, cmd, output)
	}
	return app
}

// prepare gives a command the output flag, so that it may stand behind the command's name too.
func (c *ctl) prepare(app *cli.App, cmd *cli.Command, output cli.Flag) {
	cmd.OnUsageError = app.OnUsageError
	for _, sub := range cmd.Subcommands {
		c.prepare(app, sub, output)
	}
	if cmd.Action == nil {
		cmd.Action = func(x *cli.Context) error {
			if x.NArg() > 0 {
				return noCommand(x, cmd.Subcommands)
			}
			return cli.ShowSubcommandHelp(x)
		}
		return
	}
	cmd.Flags = append(cmd.Flags, output)
	act := cmd.Action
	cmd.Action = func(x *cli.Context) error {
		format := x.String("output")
		for _, up := range x.Lineage() {
			if up.IsSet("output") {
				format = up.String("output")
				break
			}
		}
		switch format {
		case "json":
			c.json = true
		case "table":
		default:
			return &usageError{fmt.Sprintf("-o %.20q is unknown", format), "table or json"}
		}
		return act(x)
	}
}

// flagsFirst moves flags in front of the arguments of their command: people write `block 192.0.2.7 --for 3h`, and
// the library stops looking for flags at the first argument. What follows `--` stays as it is.
func flagsFirst(app *cli.App, args []string) ([]string, error) {
	if len(args) == 0 || args[len(args)-1] == "--generate-bash-completion" { // which must stay the last
		return args, nil
	}
	out := []string{args[0]}
	flags, commands := app.Flags, app.Commands
	var held []string // arguments of the command at hand
	for i := 1; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "--":
			return append(append(out, held...), args[i:]...), nil
		case len(a) > 1 && a[0] == '-':
			out = append(out, a)
			name, _, joined := strings.Cut(strings.TrimLeft(a, "-"), "=")
			if takesValue(flags, name) && !joined {
				if i+1 == len(args) {
					return nil, &usageError{fmt.Sprintf("flag %s needs a value", a), "--help behind a command shows its flags"}
				}
				i++
				out = append(out, args[i])
			}
		default:
			if cmd := find(commands, a); cmd != nil && len(held) == 0 {
				out = append(out, a)
				flags, commands = cmd.Flags, cmd.Subcommands
				continue
			}
			held = append(held, a)
		}
	}
	return append(out, held...), nil
}

func find(list []*cli.Command, name string) *cli.Command {
	for _, cmd := range list {
		if cmd.HasName(name) {
			return cmd
		}
	}
	return nil
}

func takesValue(flags []cli.Flag, name string) bool {
	for _, f := range flags {
		if slices.Contains(f.Names(), name) {
			d, ok := f.(cli.DocGenerationFlag)
			return ok && d.TakesValue()
		}
	}
	return false
}

// show prints v as JSON, or calls table.
func (c *ctl) show(v any, table func()) error {
	if c.json {
		e := json.NewEncoder(c.out)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	table()
	return nil
}

// args checks the number of arguments of a command.
func args(x *cli.Context, min, max int, form string) error {
	if n := x.NArg(); n < min || max >= 0 && n > max {
		return &usageError{fmt.Sprintf("usage: mxshieldctl %s", form), helpOf(x)}
	}
	return nil
}
