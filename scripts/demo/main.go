//go:build linux

// Command demo shows mxshield at work on one machine: `sudo make demo`.
//
// It makes private network namespaces with three mail hosts (a real Postfix of this distribution in a private folder;
// where that cannot be had, the lab's built-in SMTP server, and the output says so), a network of attackers and one honest
// sender, runs an agent next to each mail server, the three of them in a cluster, and lets 200 attackers guess recipients
// on one host while the honest sender delivers. They are dropped on all; who is unblocked on one is let in on all.
// What it then claims it has checked; it ends with a table of these facts. The host's own network, services, packages
// and BPF pins are not touched, and nothing stays behind but the packages cached for the next run.
//
// It expects mxshield-agent and mxshieldctl in the folder of its own binary.
//
// Exit codes: 0 every fact holds; 1 one does not, or the demo could not be given; 2 the command line is wrong; 130
// interrupted.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	// `demo | head` must clean up too: with a handler a write to a closed pipe fails instead of killing (screen sees
	// it). It is no reason to stop by itself: sockets whose other end is gone raise it as well.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
