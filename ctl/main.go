// Command mxshieldctl lists, explains and undoes the blocks of mxshield.
//
// Exit codes: 0 done; 1 it failed; 2 the command line is wrong; 3 no agent answers; 4 refused by a safety rule
// (never-block, an allow in the config file).
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
