package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/mxshield/mxshield/agent/internal/metrics"
)

// serveAgain is how long it takes until what could not be served is tried again.
const serveAgain = 30 * time.Second

// newMetrics makes the registry of the endpoint: the shield's figures, and what Go and the kernel say of the process.
func (d *daemon) newMetrics() (*prometheus.Registry, error) {
	reg := prometheus.NewRegistry()
	return reg, errors.Join(
		metrics.Register(reg, d.figures),
		reg.Register(collectors.NewGoCollector()),
		reg.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})),
	)
}

// serveMetrics answers Prometheus until ctx ends.
func (d *daemon) serveMetrics(ctx context.Context) error {
	at := d.cfg.Metrics
	if !at.IsValid() {
		return nil
	}
	reg, err := d.newMetrics()
	if err != nil {
		return err
	}
	d.keepServing(ctx, "metrics", "there are no metrics; it is tried again", func() error {
		l, err := net.Listen("tcp", at.String())
		if err != nil {
			return err
		}
		d.setWarning("metrics", metrics.Warning(l.Addr()), nil)
		d.log.Info("serving metrics", "listen", l.Addr())
		where := l.Addr().String()
		d.scraped.Store(&where)
		defer d.scraped.Store(nil)
		return metrics.Serve(ctx, l, reg, d.log)
	})
	return nil
}

// metricsAt is what status says of it.
func (d *daemon) metricsAt() string {
	if at := d.scraped.Load(); at != nil {
		return *at
	}
	return ""
}

// keepServing serves until ctx ends. The troubles of what is served beside the shield are no reason to stop it.
func (d *daemon) keepServing(ctx context.Context, key, text string, serve func() error) {
	for {
		err := serve()
		if ctx.Err() != nil {
			return
		}
		d.warn(key, text, listenError{err})
		select {
		case <-ctx.Done():
			return
		case <-time.After(serveAgain):
		}
	}
}

// listenError is an error of listening, with what to do about it.
type listenError struct{ error }

func (e listenError) Unwrap() error { return e.error }

// HintText tells what to do about it.
func (e listenError) HintText() string {
	switch {
	case errors.Is(e, syscall.EACCES), errors.Is(e, syscall.EPERM):
		return "ports below 1024 need CAP_NET_BIND_SERVICE: take another one"
	case errors.Is(e, syscall.EADDRINUSE):
		return "another program has that port: `ss -lpn` names it"
	case errors.Is(e, syscall.EADDRNOTAVAIL):
		return "this host has no such address: `ip address` shows those it has"
	}
	return ""
}

// checkMetrics says in check where the metrics would be, and tries it.
func checkMetrics(at netip.AddrPort, running bool, p func(name, format string, a ...any)) error {
	p("metrics", "http://%s/metrics", at)
	l, err := net.Listen("tcp", at.String())
	switch {
	case err == nil:
		defer l.Close()
		if w := metrics.Warning(l.Addr()); w != "" {
			p("", "note: %s", w)
		}
	case running && errors.Is(err, syscall.EADDRINUSE): // by the agent itself, most likely
	default:
		return fmt.Errorf("metrics: %w", listenError{err})
	}
	return nil
}
