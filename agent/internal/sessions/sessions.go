// Package sessions ends the TCP sessions that a freshly blocked source has open: the shield drops its packets from now
// on, so the mail server would wait for it until a timeout, with a process for each.
//
// It knows no entries and makes no decision: it is told which prefixes are fresh (Fresh) and asks for every connection
// from one of them whether it is to end (Options.Ends). It walks the kernel's sockets (sock_diag(7)) once for all that
// came up since the last time, and at most once in Options.Every; connections end by SOCK_DESTROY, by their kernel
// cookie. Only the network namespace of the thread that runs it is looked at.
//
// What it does not do: it never touches a socket that is not on one of the protected local ports, so none of the
// connections that the mail server makes itself. Sessions of an MTA in another namespace (a container) go on until
// their timeout; Listening says whether that may be so.
package sessions

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Options of an Ender.
type Options struct {
	// Ports are the protected local ports.
	Ports []uint16
	// Ends says whether a connection from peer to local is to end now. Addresses are never IPv4-mapped. It is called
	// without locks, on the goroutine of Run.
	Ends func(local netip.AddrPort, peer netip.Addr) bool
	// Every bounds how often the sockets are walked. 0: once a second.
	Every time.Duration
	Log   *slog.Logger
}

const (
	// maxFresh bounds what is remembered until the next walk; beyond it every source is looked at.
	maxFresh = 1 << 16
	// looks is how often a prefix is looked for again while sessions of it are found: a packet that was on its way may
	// just have finished a handshake, and a walk of a busy table may miss a socket.
	looks = 3
)

// Ender ends sessions. Fresh, All, Status and Listening may be called from any goroutine.
type Ender struct {
	o    Options
	kick chan struct{}

	mu      sync.Mutex
	fresh   map[netip.Prefix]int // -> looks left
	all     int                  // looks left at every source
	ended   uint64
	problem error // of the last walk
	never   bool  // it is not possible here at all
}

// New returns an Ender; Run works.
func New(o Options) *Ender {
	if o.Every == 0 {
		o.Every = time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Ender{o: o, kick: make(chan struct{}, 1), fresh: map[netip.Prefix]int{}}
}

// Fresh says that p was blocked now. It does not wait.
func (e *Ender) Fresh(p netip.Prefix) {
	e.mu.Lock()
	if len(e.fresh) < maxFresh {
		e.fresh[p] = looks
	} else {
		e.all = looks
	}
	e.mu.Unlock()
	e.wake()
}

// All has every source looked at: what was blocked before drops began.
func (e *Ender) All() {
	e.mu.Lock()
	e.all = looks
	e.mu.Unlock()
	e.wake()
}

func (e *Ender) wake() {
	select {
	case e.kick <- struct{}{}:
	default:
	}
}

// Status is what an Ender has done.
type Status struct {
	Ended   uint64 // sessions
	Problem error  // why the last attempt failed, nil if it did not; has a HintText if there is something to do
}

// Status returns what was done so far.
func (e *Ender) Status() Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	return Status{e.ended, e.problem}
}

// Run ends sessions until ctx ends: at once for the first fresh prefix, and then at most every Options.Every.
func (e *Ender) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.kick:
		}
		began := time.Now()
		if e.walk() {
			e.wake()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(e.o.Every - time.Since(began)):
		}
	}
}

// walk looks at the sockets once. It reports whether it should be done again.
func (e *Ender) walk() (again bool) {
	e.mu.Lock()
	fresh, all, never := e.fresh, e.all, e.never
	e.fresh, e.all = map[netip.Prefix]int{}, 0
	e.mu.Unlock()
	if never || len(fresh) == 0 && all == 0 {
		return false
	}
	ended, found, err := e.end(newSet(fresh), all > 0)

	e.mu.Lock()
	defer e.mu.Unlock()
	e.ended += uint64(ended)
	old := e.problem
	e.problem, e.never = explain(err)
	if e.problem != nil && (old == nil || old.Error() != e.problem.Error()) {
		e.o.Log.Warn("live sessions of blocked sources are not ended; their packets are dropped all the same", "error", e.problem)
	}
	if e.never {
		return false
	}
	for p, left := range fresh {
		if _, newer := e.fresh[p]; !newer && left > 1 && (err != nil || found[p]) {
			e.fresh[p] = left - 1
			again = true
		}
	}
	if all > 1 && e.all == 0 && (err != nil || found[netip.Prefix{}]) {
		e.all = all - 1
		again = true
	}
	return again
}

// end walks the sockets and ends what is to end. Found are the prefixes of which there was one, the zero prefix for
// those that only all hit.
func (e *Ender) end(fresh *set, all bool) (ended int, found map[netip.Prefix]bool, err error) {
	c, err := dial()
	if err != nil {
		return 0, nil, err
	}
	defer c.close()
	found = map[netip.Prefix]bool{}
	var list []socket
	err = c.dump(established|synRecv|closeWait, e.o.Ports, func(s *socket) {
		p, ok := fresh.around(s.remote.Addr())
		if (ok || all) && e.o.Ends(s.local, s.remote.Addr()) {
			list = append(list, *s)
			found[p] = true
		}
	})
	// What a walk found before it broke off is as true as the rest.
	errs := []error{err}
	for i := range list {
		switch err := c.destroy(&list[i]); {
		case err == nil:
			ended++
		case errors.Is(err, unix.ENOENT): // it has ended by itself
		default:
			errs = append(errs, fmt.Errorf("end a session: %w", err))
			if _, never := explain(err); never {
				return ended, found, errors.Join(errs...)
			}
		}
		if len(errs) > 10 {
			break // they will not be the last
		}
	}
	if ended > 0 {
		e.o.Log.Debug("ended live sessions of blocked sources", "sessions", ended)
	}
	return ended, found, errors.Join(errs...)
}

// Listening says whether anything listens on one of the ports in the calling thread's network namespace.
func (e *Ender) Listening() (bool, error) {
	c, err := dial()
	if err != nil {
		return false, err
	}
	defer c.close()
	any := false
	err = c.dump(listening, e.o.Ports, func(*socket) { any = true })
	return any, err
}

// problem is an error with a hint.
type problem struct {
	error
	hint string
}

func (p *problem) Unwrap() error    { return p.error }
func (p *problem) HintText() string { return p.hint }

// explain turns an errno of the kernel's socket diagnosis into what to do, and says whether trying again is in vain.
func explain(err error) (error, bool) {
	switch {
	case err == nil:
		return nil, false
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EPROTONOSUPPORT):
		return &problem{fmt.Errorf("this kernel cannot end them (it has no SOCK_DESTROY for TCP): %w", err),
			"a kernel with CONFIG_INET_DIAG_DESTROY, and its module tcp_diag where that is one, can"}, true
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return &problem{fmt.Errorf("this process may not end them: %w", err),
			"it takes CAP_NET_ADMIN over the network namespace, and a RestrictAddressFamilies= with AF_NETLINK"}, true
	case errors.Is(err, unix.EAFNOSUPPORT):
		return &problem{fmt.Errorf("this process may not ask for them: %w", err), "RestrictAddressFamilies= of the systemd unit needs AF_NETLINK"}, true
	}
	return err, false
}

// set is prefixes, to be found by an address.
type set struct {
	prefixes map[netip.Prefix]int
	lengths4 []int
	lengths6 []int
}

func newSet(prefixes map[netip.Prefix]int) *set {
	s := &set{prefixes: prefixes}
	var seen [2][129]bool
	for p := range prefixes {
		family, list := 0, &s.lengths4
		if p.Addr().Is6() {
			family, list = 1, &s.lengths6
		}
		if !seen[family][p.Bits()] {
			seen[family][p.Bits()] = true
			*list = append(*list, p.Bits())
		}
	}
	return s
}

// around returns one of the prefixes that contain a.
func (s *set) around(a netip.Addr) (netip.Prefix, bool) {
	lengths := s.lengths4
	if a.Is6() {
		lengths = s.lengths6
	}
	for _, bits := range lengths {
		p, err := a.WithZone("").Prefix(bits)
		if err != nil {
			continue
		}
		if _, ok := s.prefixes[p]; ok {
			return p, true
		}
	}
	return netip.Prefix{}, false
}
