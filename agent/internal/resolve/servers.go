package resolve

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/miekg/dns"
)

// server is one DNS server and how it fared. Guarded by the resolver's lock.
type server struct {
	addr     netip.AddrPort
	queries  uint64
	failures uint64
	streak   int       // failures in a row
	until    time.Time // asked last until then
	failed   time.Time
	why      string
	rtt      float64 // milliseconds, smoothed
}

const (
	downFirst = time.Second
	downMost  = time.Minute
	deafAfter = 3 // failures of each server, in a row
)

func (s *server) down(now time.Time) bool {
	return now.Before(s.until) && s.until.Sub(now) <= downMost // a clock that was set back must not keep it down
}

// note remembers how a server fared. One that answers, SERVFAIL included, is well: the fault is further away.
func (r *Resolver) note(s *server, e *Error, took time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.queries++
	if e == nil {
		if ms := float64(took) / float64(time.Millisecond); s.rtt == 0 {
			s.rtt = ms
		} else {
			s.rtt += (ms - s.rtt) / 8
		}
		s.streak, s.until = 0, time.Time{}
		return
	}
	s.failures++
	s.why, s.failed = e.Kind.String(), r.o.Now()
	switch e.Kind {
	case Timeout, Network, Refused, Mismatch, Lame:
		s.until = s.failed.Add(min(downMost, downFirst<<min(s.streak, 6)))
		s.streak++
	default:
		s.streak, s.until = 0, time.Time{}
	}
}

// orderLocked lists the servers as they are to be asked: those that are well in the order of the config, then the others,
// those soonest well first.
func (r *Resolver) orderLocked(now time.Time) []*server {
	order := slices.Clone(r.servers)
	slices.SortStableFunc(order, func(a, b *server) int {
		x, y := a.down(now), b.down(now)
		switch {
		case x && y:
			return a.until.Compare(b.until)
		case x:
			return 1
		case y:
			return -1
		}
		return 0
	})
	return order
}

func (r *Resolver) setServersLocked(list []netip.AddrPort) {
	old := r.servers
	r.servers = nil
	for _, a := range list {
		if len(r.servers) == maxServers {
			break
		}
		if slices.ContainsFunc(r.servers, func(s *server) bool { return s.addr == a }) {
			continue
		}
		i := slices.IndexFunc(old, func(s *server) bool { return s.addr == a })
		if i >= 0 {
			r.servers = append(r.servers, old[i])
			continue
		}
		r.servers = append(r.servers, &server{addr: a})
	}
}

// confState is what resolv.conf was when it was read last.
type confState struct {
	looked  time.Time
	mod     time.Time
	size    int64
	problem string
}

const maxConf = 64 << 10

// followLocked reads resolv.conf if it is used and has changed. What cannot be read changes nothing.
func (r *Resolver) followLocked(now time.Time) {
	if len(r.o.Servers) > 0 {
		return
	}
	c := &r.conf
	if d := now.Sub(c.looked); !c.looked.IsZero() && d >= 0 && d < confEvery {
		return
	}
	c.looked = now
	fi, err := os.Stat(r.o.ResolvConf)
	switch {
	case errors.Is(err, os.ErrNotExist):
		c.mod, c.size, c.problem = time.Time{}, 0, ""
		if len(r.servers) == 0 {
			r.setServersLocked([]netip.AddrPort{localServer}) // resolv.conf(5)
		}
		return
	case err != nil:
		c.problem = err.Error()
	case fi.ModTime().Equal(c.mod) && fi.Size() == c.size:
		return
	default:
		list, err := readConf(r.o.ResolvConf, fi.Size())
		if err != nil {
			c.problem = err.Error()
			break
		}
		c.mod, c.size, c.problem = fi.ModTime(), fi.Size(), ""
		r.setServersLocked(list)
	}
	if len(r.servers) == 0 {
		r.setServersLocked([]netip.AddrPort{localServer})
	}
}

var localServer = netip.MustParseAddrPort("127.0.0.1:53")

func readConf(path string, size int64) ([]netip.AddrPort, error) {
	if size > maxConf {
		return nil, errors.New(path + " has more than " + strconv.Itoa(maxConf) + " bytes")
	}
	conf, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil, err
	}
	var list []netip.AddrPort
	for _, s := range conf.Servers {
		if a, err := netip.ParseAddr(s); err == nil {
			list = append(list, netip.AddrPortFrom(a, 53))
		}
	}
	if len(list) == 0 {
		list = append(list, localServer)
	}
	return list, nil
}
