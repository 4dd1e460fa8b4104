//go:build linux

package e2e

import (
	"errors"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/scripts/lab"
)

// knocks sends n SYNs from one source, each from a port of its own, and waits for no answer.
func (r *rig) knocks(from netip.Addr, to netip.AddrPort, n int) {
	r.t.Helper()
	err := r.top.Net.Do(func() error {
		for range n {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			err = unix.Bind(fd, &unix.SockaddrInet4{Addr: from.As4()})
			if err == nil {
				err = unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
			}
			unix.Close(fd)
			if err != nil && !errors.Is(err, unix.EINPROGRESS) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// TestLimits: a source that opens connections faster than it may is limited for as long, and no longer. Its open session
// goes on, others come in, an allowed one is not counted, and nobody is blocked for it.
func TestLimits(t *testing.T) {
	r := newRig(t, lab.Options{ProcessLimit: 200}, "limits: {syn_per_source: 1, syn_total: 1000}\n")
	r.start()
	src := lab.Sources(lab.Attack4, 3)
	open := r.idles(1, src[0], mx)
	var refused atomic.Int32
	var all sync.WaitGroup
	for range 60 {
		all.Go(func() {
			if lab.ConnectTimesOut(t.Context(), r.top.Net, src[0], mx, 400*time.Millisecond) {
				refused.Add(1)
			}
		})
	}
	all.Wait()
	// Five at once, one of which was the open session's, and one a second.
	if n := refused.Load(); n < 20 || n > 56 {
		t.Errorf("%d of 60 connections were limited", n)
	}
	if !open[0].answers() {
		t.Error("the open session is disturbed")
	}
	for _, honest := range []netip.Addr{src[1], lab.Honest4} {
		r.idles(3, honest, mx)
	}
	s := r.status()
	if s.Packets["drop_limited_source"] < 20 || s.Packets["drop_limited_total"] != 0 || s.Limits == nil || s.Limits.SourceBurst != 5 {
		t.Errorf("status: %v, %+v", s.Packets, s.Limits)
	}
	if out := r.must("status"); !strings.Contains(out, "1 new connections/s per source (5 at once)") {
		t.Errorf("status:\n%s", out)
	}
	if w := r.why(src[0]); w.Decision.Drop || w.Decision.By != nil {
		t.Errorf("the limit made an entry: %+v", w.Decision)
	}
	r.must("allow", "add", src[0].String())
	r.idles(12, src[0], mx)
	r.must("allow", "remove", src[0].String())
	r.eventually("it is limited again", func() bool {
		return lab.ConnectTimesOut(t.Context(), r.top.Net, src[0], mx, 200*time.Millisecond)
	})
}

// TestTop: who is dropped most stands on top.
func TestTop(t *testing.T) {
	r := bareRig(t, noLog)
	r.start()
	src := lab.Sources(lab.Attack4, 2)
	if out := r.must("top"); !strings.Contains(out, "no dropped packet was sampled") {
		t.Errorf("before:\n%s", out)
	}
	r.must("block", src[0].String())
	var top control.Top
	r.eventually("the source is in top", func() bool {
		r.knocks(src[0], mx, 2000) // at most 1597 between two samples
		top = ask[control.Top](r, "top")
		return len(top.Talkers) > 0
	})
	k := top.Talkers[0]
	if len(top.Talkers) != 1 || k.Source.Addr() != src[0] || k.Reasons["drop_exact"] <= 0 || k.Cause != "manual" || k.Drops < 600 || len(k.Ports) != 1 || k.Ports[0] != 25 {
		t.Errorf("%+v", top)
	}
	if out := r.must("top"); !strings.Contains(out, src[0].String()) || !strings.Contains(out, "exact") {
		t.Errorf("top:\n%s", out)
	}
}
