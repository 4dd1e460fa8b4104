package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/urfave/cli/v2"

	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/agent/internal/config"
	"github.com/mxshield/mxshield/agent/internal/maillog"
	"github.com/mxshield/mxshield/agent/internal/store"
	"github.com/mxshield/mxshield/bpf"
)

// Exit codes, as in the package documentation.
const (
	exitOK, exitFailed, exitUsage, exitRunning, exitPermission = 0, 1, 2, 3, 4
)

// usageError is a fault of the command line.
type usageError struct{ error }

// run is the whole program but for the process: tests call it too. It returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var (
		path, level string
		named       bool
		stdin       bool
	)
	onUsage := func(_ *cli.Context, err error, _ bool) error { return usageError{err} }
	load := func(x *cli.Context) (*config.Config, error) {
		if x.NArg() > 0 {
			return nil, usageError{fmt.Errorf("%q is no command; run, check, replay or help", x.Args().First())}
		}
		path, named = x.String("config"), x.IsSet("config")
		return config.Read(path, named)
	}
	start := func(x *cli.Context) error {
		cfg, err := load(x)
		if err != nil {
			return err
		}
		var min slog.Level
		if err := min.UnmarshalText([]byte(level)); err != nil {
			return usageError{fmt.Errorf("--log-level %.20q: debug, info, warn or error", level)}
		}
		if stdin {
			cfg.Logs = []config.Log{{Stdin: true}}
		}
		log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: min, ReplaceAttr: journalStyle}))
		return serve(x.Context, cfg, reloader(path, named), log)
	}
	app := &cli.App{
		Name: "mxshield-agent", Usage: "the daemon of mxshield: log lines in, blocks out", Version: control.Version(),
		Description: "All settings have defaults; the package documentation of agent/internal/config and README.md list the keys.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Value: config.DefaultPath, Usage: "YAML `FILE`"},
			&cli.StringFlag{Name: "log-level", Value: "info", Usage: "debug, info, warn or error", Destination: &level},
		},
		Writer: stdout, ErrWriter: stderr,
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError:   onUsage,
		Action:         start,
		Commands: []*cli.Command{
			{Name: "run", Usage: "shield this host (the default)", Action: start, OnUsageError: onUsage, Flags: []cli.Flag{
				&cli.BoolFlag{Name: "stdin", Usage: "read the log from standard input, whatever logs the config names", Destination: &stdin},
			}},
			{Name: "check", Usage: "explain the config and what would be used, and change nothing", OnUsageError: onUsage, Action: func(x *cli.Context) error {
				cfg, err := load(x)
				if err != nil {
					return err
				}
				return check(x.Context, cfg, path, stdout)
			}},
			replayCommand(stdout, stderr, onUsage),
		},
	}
	err := app.RunContext(ctx, args)
	if err == nil {
		return exitOK
	}
	control.PrintError(stderr, err)
	var usage usageError
	var conf *config.Error
	switch {
	case errors.As(err, &usage), errors.As(err, &conf):
		return exitUsage
	case errors.Is(err, control.ErrRunning), errors.Is(err, store.ErrLocked), errors.Is(err, bpf.ErrInUse):
		return exitRunning
	case errors.Is(err, os.ErrPermission), errors.Is(err, bpf.ErrPermission):
		return exitPermission
	}
	return exitFailed
}

func replayCommand(stdout, stderr io.Writer, onUsage cli.OnUsageErrorFunc) *cli.Command {
	var o replayOptions
	var format, mta string
	return &cli.Command{
		Name: "replay", Usage: "say whom log files would have got blocked, when and why; changes nothing", ArgsUsage: "FILE...|-",
		OnUsageError: onUsage,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "events", Usage: "print the events instead, one per line", Destination: &o.events},
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "table", Usage: "`FORMAT`: table or json", Destination: &format},
			&cli.StringFlag{Name: "mta", Value: "auto", Usage: "whose lines: auto, postfix, exim, sendmail, opensmtpd, dovecot or courier", Destination: &mta},
			&cli.IntFlag{Name: "year", Usage: "`Y` of stamps without one (default: from the file's time)", Destination: &o.year},
			&cli.BoolFlag{Name: "trust-lists", Usage: "count rejections by DNS lists, although the list may have erred", Destination: &o.trust},
		},
		Action: func(x *cli.Context) error {
			if o.files = x.Args().Slice(); len(o.files) == 0 {
				return usageError{errors.New("replay needs a FILE, or - for standard input")}
			}
			switch format {
			case "json":
				o.json = true
			case "table":
			default:
				return usageError{fmt.Errorf("-o %.20q is unknown; table or json", format)}
			}
			var ok bool
			if o.mta, ok = maillog.ParseMTA(mta); !ok {
				return usageError{fmt.Errorf("--mta %.40q is unknown; auto, postfix, exim, sendmail, opensmtpd, dovecot or courier", mta)}
			}
			if o.year != 0 && (o.year < 1971 || o.year > 2100) {
				return usageError{fmt.Errorf("--year %d is out of range", o.year)}
			}
			cfg, err := config.Read(x.String("config"), x.IsSet("config"))
			if err != nil {
				return err
			}
			r, err := newReplay(cfg, o, os.Stdin, stdout, stderr)
			if err != nil {
				return err
			}
			return r.run()
		},
	}
}

// journalStyle leaves the time to the journal where stderr goes there.
func journalStyle(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey && os.Getenv("JOURNAL_STREAM") != "" {
		return slog.Attr{}
	}
	return a
}

// reloader reads the config again, for SIGHUP.
func reloader(path string, named bool) func() (*config.Config, error) {
	return func() (*config.Config, error) { return config.Read(path, named) }
}
