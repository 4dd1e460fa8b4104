package gossip

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// DefaultPort is where nodes listen, TCP and UDP.
const DefaultPort = 7946

const (
	resolveTimeout = 5 * time.Second
	resolveEvery   = 5 * time.Minute // even if all its members are there: a name may have got more
	aliasEvery     = time.Minute     // an address that answers, but that no member calls its own
	maxResolved    = 64              // addresses of one name
	maxCalls       = 16              // at a time
)

// seeker calls those who should be members and are not, for ever: memberlist itself forgets a node that it took for
// dead, and after a longer partition neither side would ever look for the other again. And it calls members that were
// restarted before anybody missed them: all configured peers at once, say. They know nobody but each other then, and who
// goes on pinging them would not tell them before the next push/pull.
type seeker struct {
	every  time.Duration
	port   uint16 // of peers that name none
	self   func(netip.AddrPort) bool
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	call   func(peer string, at netip.AddrPort) error
	table  *table

	wg    sync.WaitGroup
	slots chan struct{}
	again chan struct{} // a member was restarted

	mu     sync.Mutex
	static []*static
	calls  map[netip.AddrPort]*attempt
}

// static is a peer from the config.
type static struct {
	text  string
	host  string
	port  uint16
	fixed bool // an address

	addrs    []netip.AddrPort
	resolved time.Time
	err      error
}

type attempt struct {
	busy bool
	ok   time.Time // when it last answered
	err  error
}

// parsePeer reads "192.0.2.7", "mx2.example.org", "mx2:7946", "[2001:db8::7]:7946".
func parsePeer(s string, port uint16) (*static, error) {
	bad := func(err error) error {
		return hint(fmt.Errorf("%.100q is no peer: %w", s, err), "an address or a host name, with :port if it is not "+fmt.Sprint(port))
	}
	p := &static{text: s, port: port}
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		s = netip.AddrPortFrom(a, port).String()
	}
	host, ps, err := net.SplitHostPort(s)
	if err != nil {
		host, ps = s, ""
		if strings.Contains(s, ":") {
			return nil, bad(err)
		}
	}
	if ps != "" {
		ap, err := netip.ParseAddrPort("0.0.0.0:" + ps)
		if err != nil || ap.Port() == 0 {
			return nil, bad(fmt.Errorf("%.10q is no port", ps))
		}
		p.port = ap.Port()
	}
	p.host = host
	if a, err := netip.ParseAddr(host); err == nil {
		if a.IsUnspecified() || a.IsMulticast() {
			return nil, bad(fmt.Errorf("%s is no address of a host", a))
		}
		p.fixed, p.addrs = true, []netip.AddrPort{netip.AddrPortFrom(a.Unmap(), p.port)}
	} else if !validHost(host) {
		return nil, bad(fmt.Errorf("%.80q is no host name", host))
	}
	return p, nil
}

// CheckPeer says what is wrong with a peer of the config.
func CheckPeer(s string) error {
	_, err := parsePeer(s, DefaultPort)
	return err
}

// PeerAddr returns the address of a peer of the config that is no name.
func PeerAddr(s string) (netip.Addr, bool) {
	p, err := parsePeer(s, DefaultPort)
	if err != nil || !p.fixed {
		return netip.Addr{}, false
	}
	return p.addrs[0].Addr().WithZone(""), true
}

func validHost(s string) bool {
	s = strings.TrimSuffix(s, ".")
	if s == "" || len(s) > 253 {
		return false
	}
	last := ""
	for l := range strings.SplitSeq(s, ".") {
		if len(l) > 63 || !validName(l) {
			return false
		}
		last = l
	}
	return strings.Trim(last, "0123456789") != "" // 192.0.2 is no name
}

// run calls now and every interval until the context ends.
func (s *seeker) run(ctx context.Context) {
	wait := min(time.Second, s.every)
	for {
		s.round(ctx)
		// Soon after the start the others may be starting too.
		d := wait*4/5 + rand.N(wait*2/5+1)
		wait = min(2*wait, s.every)
		for next := time.After(d); next != nil; {
			select {
			case <-ctx.Done():
				s.wg.Wait()
				return
			case <-s.again:
				s.callRestarted(ctx)
			case <-next:
				next = nil
			}
		}
	}
}

// look makes it call members that were restarted.
func (s *seeker) look() {
	select {
	case s.again <- struct{}{}:
	default:
	}
}

func (s *seeker) callRestarted(ctx context.Context) {
	for _, n := range s.table.restarted(s.every) {
		if a, ok := netip.AddrFromSlice(n.Addr); ok {
			s.wg.Go(func() { _ = s.callInTurn(ctx, n.Name, netip.AddrPortFrom(a.Unmap(), n.Port)) })
		}
	}
}

// callInTurn calls once there is a place for one more call.
func (s *seeker) callInTurn(ctx context.Context, peer string, at netip.AddrPort) error {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
		return s.call(peer, at)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *seeker) round(ctx context.Context) {
	s.resolve(ctx)
	type target struct {
		peer string
		at   netip.AddrPort
	}
	var list []target
	add := func(peer string, at netip.AddrPort) {
		if !s.self(at) && !s.table.alive(at) && !slices.ContainsFunc(list, func(t target) bool { return t.at == at }) {
			list = append(list, target{peer, at})
		}
	}
	s.mu.Lock()
	for _, p := range s.static {
		for _, at := range p.addrs {
			add("peer", at)
		}
	}
	s.mu.Unlock()
	for _, n := range s.table.failed() {
		if a, ok := netip.AddrFromSlice(n.Addr); ok {
			add(n.Name, netip.AddrPortFrom(a.Unmap(), n.Port))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for at, a := range s.calls {
		if !a.busy && !slices.ContainsFunc(list, func(t target) bool { return t.at == at }) && !s.configuredLocked(at) {
			delete(s.calls, at)
		}
	}
	for _, t := range list {
		a := s.calls[t.at]
		if a == nil {
			a = &attempt{}
			s.calls[t.at] = a
		}
		if a.busy || time.Since(a.ok) < aliasEvery && a.err == nil && !a.ok.IsZero() {
			continue
		}
		a.busy = true
		s.wg.Go(func() {
			err := s.callInTurn(ctx, t.peer, t.at)
			// Whoever answered and is a member now needs no second call; if it goes again, the next must not wait.
			member := err == nil && s.table.alive(t.at)
			s.mu.Lock()
			defer s.mu.Unlock()
			a.busy, a.err = false, err
			a.ok = time.Time{}
			if err == nil && !member {
				a.ok = time.Now()
			}
		})
	}
}

func (s *seeker) configuredLocked(at netip.AddrPort) bool {
	return slices.ContainsFunc(s.static, func(p *static) bool { return slices.Contains(p.addrs, at) })
}

// resolve looks names up, all at once: those of which a member is missing each time, the others now and then.
func (s *seeker) resolve(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.static {
		if p.fixed {
			continue
		}
		missing := len(p.addrs) == 0 || slices.ContainsFunc(p.addrs, func(a netip.AddrPort) bool { return !s.self(a) && !s.table.alive(a) })
		if !missing && time.Since(p.resolved) < resolveEvery {
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			addrs, err := s.lookup(ctx, p.host)
			s.mu.Lock()
			defer s.mu.Unlock()
			p.err, p.resolved = err, time.Now()
			if err != nil || len(addrs) == 0 {
				return // what it was is the best guess: a dead resolver must not cut the cluster
			}
			p.addrs = p.addrs[:0:0]
			for _, a := range addrs[:min(len(addrs), maxResolved)] {
				if a = a.Unmap(); !a.IsUnspecified() && !a.IsMulticast() {
					p.addrs = append(p.addrs, netip.AddrPortFrom(a, p.port))
				}
			}
		}()
	}
}

// knows says whether this is the address of a configured peer.
func (s *seeker) knows(a netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.static, func(p *static) bool {
		return slices.ContainsFunc(p.addrs, func(o netip.AddrPort) bool { return o.Addr() == a })
	})
}

// addrs adds the addresses of the configured peers, each with what the config calls it.
func (s *seeker) addrs(to map[netip.Addr]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.static {
		for _, at := range p.addrs {
			to[at.Addr().WithZone("")] = p.text
		}
	}
}

// printable makes an error fit for a terminal: the one who was called may have written some of it.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, text[:min(len(text), 200)])
}

// unreached lists the configured peers that no member answers for, and why.
func (s *seeker) unreached(members []Member) (list []Member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.static {
		reached := false
		var problem error
		for _, at := range p.addrs {
			a := s.calls[at]
			if s.self(at) || slices.ContainsFunc(members, func(m Member) bool { return m.Addr == at.String() }) || a != nil && a.err == nil && !a.ok.IsZero() {
				reached = true
			} else if a != nil && a.err != nil {
				problem = a.err
			}
		}
		if reached {
			continue
		}
		if problem == nil {
			problem = p.err
		}
		m := Member{Name: p.text, State: Unreached}
		if problem != nil {
			m.Problem = printable(problem.Error())
		}
		list = append(list, m)
	}
	return list
}
