// Command loggen writes a Postfix log of one day, made up from a seed, and the truth about who in it is who:
//
//	go run ./scripts/loggen -seed 1 -lines 100000 -o mail.log -truth truth.json
//
// Package traffic says what is in it.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"

	"github.com/mxshield/mxshield/scripts/loggen/traffic"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run() error {
	var o traffic.Options
	flag.Uint64Var(&o.Seed, "seed", 1, "the same seed and number of lines give the same log")
	flag.IntVar(&o.Lines, "lines", 100_000, "about how many lines, at least 20000")
	flag.BoolVar(&o.Balancer, "balancer", false, "everything comes through one load balancer")
	out := flag.String("o", "", "where the log goes (default: standard output)")
	truth := flag.String("truth", "", "where the truth goes, as JSON")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	l, err := traffic.New(o)
	if err != nil {
		return err
	}
	f := os.Stdout
	if *out != "" {
		if f, err = os.Create(*out); err != nil {
			return err
		}
	}
	w := bufio.NewWriter(f)
	for _, line := range l.Lines {
		w.WriteString(line)
		w.WriteByte('\n')
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the log: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write the log: %w", err)
	}
	if *truth == "" {
		return nil
	}
	b, err := json.MarshalIndent(l.Truth, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(*truth, append(b, '\n'), 0o644)
}
