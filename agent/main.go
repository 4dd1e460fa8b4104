// Command mxshield-agent reads the MTA's log, blocks sources that attack, and keeps the kernel's table of them.
//
// Exit codes: 0 stopped by a signal; 1 it failed; 2 the command line or the config is wrong; 3 another agent is
// running; 4 a permission is missing (the error names it).
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// A log reader that goes away must not end the shield: Go dies of a broken pipe on standard error otherwise.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
