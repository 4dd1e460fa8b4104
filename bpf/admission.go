package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// New connections: the limits of rate.h and the hold of hold.h. What they know is of passing value: it is neither read
// by the agent nor kept anywhere, with one exception: which sources were seen lately is pinned, so that a restart of
// the agent delays nobody a second time.

const (
	// SourceBurst and TotalBurst are how many seconds' worth of new connections a source that was quiet, and all
	// together, may open at once.
	SourceBurst, TotalBurst = 5, 1

	maxRate           = 1_000_000 // per second
	rateShift         = 20        // RATE_SHIFT in rate.h
	defaultHoldBudget = 200
	bucketSources     = 1 << 16 // sources that the limit tells apart: 7 MB
	seenSources       = 1 << 18 // sources that the hold remembers: 27 MB; see DailyHolds
	firstsSize        = 1 << 16 // bytes of ring, 32 each
	holdTime          = 900 * time.Millisecond
	holdLately        = 24 * time.Hour
	maxHoldAlive      = 10 * time.Second

	// DailyHolds and KnownSources bound what is remembered of held sources: who has a day's worth of holds at once and another
	// one over the day, and says that so many sources are known, stays below what the table of them has room for. So none
	// is forgotten, and held again, within a day.
	DailyHolds, KnownSources = 100_000, 40_000
)

// passing are the maps that are not pinned. They live as long as a process, or a program that has them.
var passing = []string{
	shieldMapAdmission, shieldMapAllowed, shieldMapBuckets, shieldMapFirsts, shieldMapSamples, shieldMapSamplesLost,
}

func isPinned(mapName string) bool { return !slices.Contains(passing, mapName) }

// CheckLimits says what is wrong with limits for [Options]: new connections a second from one source, and from all
// together; 0 is no limit. A quiet source may open five seconds' worth at once, all together one second's.
func CheckLimits(perSource, total int) error {
	for _, l := range []struct {
		name string
		n    int
	}{{"SYNs per source", perSource}, {"SYNs in total", total}} {
		if l.n < 0 || l.n > maxRate {
			return hint(fmt.Errorf("limits: %d %s", l.n, l.name), fmt.Sprintf("1 to %d a second, or 0 for no limit", maxRate))
		}
	}
	if total > 0 && perSource > total {
		return hint(fmt.Errorf("limits: %d SYNs per source are more than %d in total", perSource, total),
			"one source could use up what all others need: raise the total")
	}
	return nil
}

func checkAdmission(opts Options) error {
	if err := checkHoldBudget(opts.HoldBudget); err != nil {
		return err
	}
	return CheckLimits(opts.SYNPerSource, opts.SYNTotal)
}

func checkHoldBudget(perSecond int) error {
	if perSecond < 0 || perSecond > maxRate {
		return fmt.Errorf("hold: a budget of %d a second is out of range", perSecond)
	}
	return nil
}

// SetHoldBudget changes Options.HoldBudget; 0 is its default. Safe for concurrent use.
func (s *Shield) SetHoldBudget(perSecond int) error {
	if err := checkHoldBudget(perSecond); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.holdingLocked(); err != nil {
		return err
	}
	if perSecond == 0 {
		perSecond = defaultHoldBudget
	}
	s.opts.HoldBudget = perSecond
	s.tellBudgetLocked()
	return nil
}

// tellBudgetLocked tells the program. Between the two words it may hold one more or less.
func (s *Shield) tellBudgetLocked() {
	r, b := rateFor(s.opts.HoldBudget, s.opts.HoldBudget, s.jiffies.hz), &s.gen.admit.Budget
	atomic.StoreUint64(&b.Each, r.Each)
	atomic.StoreUint64(&b.Ahead, r.Ahead)
}

// rateFor is a token bucket of rate.h.
func rateFor(perSecond, burst int, hz uint64) shieldRate {
	if perSecond == 0 {
		return shieldRate{}
	}
	each := hz << rateShift / uint64(perSecond)
	return shieldRate{Each: each, Ahead: uint64(burst-1) * each}
}

func (o *Options) asksNew() bool { return o.Hold || o.SYNPerSource > 0 || o.SYNTotal > 0 }

// setAdmission writes limits and hold into the program's constants, and the sizes of what they need.
func setAdmission(spec *ebpf.CollectionSpec, o Options, hz uint64) error {
	var on uint32
	var hold shieldHold
	if o.asksNew() {
		on = 1
	}
	if o.Hold {
		hold = shieldHold{Time: hz * uint64(holdTime) / uint64(time.Second), Lately: hz * uint64(holdLately/time.Second)}
		spec.Maps[shieldMapSeen].MaxEntries = seenSources
	}
	if o.SYNPerSource > 0 {
		spec.Maps[shieldMapBuckets].MaxEntries = bucketSources
	}
	firsts := firstsSize
	if !o.Hold {
		firsts = os.Getpagesize() // the least there is
	}
	spec.Maps[shieldMapFirsts].MaxEntries = uint32(firsts)
	for _, v := range []struct {
		name string
		to   any
	}{
		{shieldVarNewConnections, on},
		{shieldVarLimitSource, rateFor(o.SYNPerSource, SourceBurst*o.SYNPerSource, hz)},
		{shieldVarLimitTotal, rateFor(o.SYNTotal, TotalBurst*o.SYNTotal, hz)},
		{shieldVarHoldFor, hold},
	} {
		if err := spec.Variables[v.name].Set(v.to); err != nil {
			return fmt.Errorf("set %s: %w", v.name, err)
		}
	}
	return nil
}

// openPassing makes the maps of passing value anew, and those seen too if what is pinned does not fit: an older version
// had none, another config another size. For other maps it returns nil.
func openPassing(path, name string, want *ebpf.MapSpec) (*ebpf.Map, error) {
	if name == shieldMapSeen {
		m, err := openMap(path, name, want)
		if err == nil && m.MaxEntries() == want.MaxEntries {
			return m, nil
		}
		if err == nil {
			m.Close()
		}
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
			return nil, err
		}
	} else if isPinned(name) {
		return nil, nil
	}
	m, err := ebpf.NewMap(want)
	if err != nil {
		return nil, fmt.Errorf("make map %s: %w", name, err)
	}
	return m, nil
}

// replaceMapPin pins a map where perhaps another one is pinned.
func replaceMapPin(m *ebpf.Map, path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("pin map %s: %w", path, err)
	}
	return pinMap(m, path)
}

func allowedKey(p netip.Prefix) *shieldAllowedKey {
	k := &shieldAllowedKey{Bits: 32 + uint32(p.Bits())}
	b := p.Addr().AsSlice()
	if p.Addr().Is6() {
		k.Ipv6 = 1
	}
	for i := range len(b) / 4 {
		k.Addr[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	return k
}

// SetAllowed replaces the list of prefixes whose new connections are neither limited nor held. It changes nothing about
// blocks: whom the tables block is dropped before. Without limits and hold it does nothing. Safe for concurrent use.
//
// Errors: [ErrFull] beyond 65536 prefixes; a prefix that is not canonical. What could be done has been done.
func (s *Shield) SetAllowed(list []netip.Prefix) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return os.ErrClosed
	}
	if !s.opts.asksNew() {
		return nil
	}
	m := s.gen.maps[shieldMapAllowed]
	var errs []error
	wanted := make(map[netip.Prefix]struct{}, len(list))
	for _, p := range list {
		wanted[p] = struct{}{}
	}
	// What goes makes room for what comes. Nobody is in both, so the order opens no gap.
	for p := range s.allowed {
		if _, ok := wanted[p]; ok {
			continue
		}
		if err := m.Delete(allowedKey(p)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("limit %s again: %w", p, err))
			continue
		}
		delete(s.allowed, p)
	}
	for p := range wanted {
		if _, ok := s.allowed[p]; ok {
			continue
		}
		err := checkPrefix(p)
		if err == nil {
			err = put(m, allowedKey(p), uint32(1), "allow wider prefixes, or fewer")
		}
		if err != nil {
			if errs = append(errs, fmt.Errorf("allow %s: %w", p, err)); errors.Is(err, ErrFull) {
				break
			}
			continue
		}
		s.allowed[p] = struct{}{}
	}
	return errors.Join(errs...)
}

// jiffiesLocked is the time as the limits and the hold see it.
func (s *Shield) jiffiesLocked() (uint64, error) {
	if f := atomic.LoadUint64(&s.gen.admit.Frozen); f != 0 {
		return f, nil
	}
	j, _, err := s.jiffies.read()
	return j, err
}

// HoldAlive says that first SYNs of IPv4 and of IPv6 sources may be held until then, since somebody reads
// [Shield.FirstSeen] and will be there. It is to be called every second or so; when nobody does any more, connections
// pass at once, after that time, or ten seconds at most. A time in the past ends it at once. Safe for concurrent use.
func (s *Shield) HoldAlive(v4, v6 time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.holdingLocked(); err != nil {
		return err
	}
	now, err := s.jiffiesLocked()
	if err != nil {
		return err
	}
	for i, until := range []time.Time{v4, v6} {
		left := min(time.Until(until), maxHoldAlive)
		if left <= 0 {
			atomic.StoreUint64(&s.gen.admit.Alive[i], 0)
			continue
		}
		atomic.StoreUint64(&s.gen.admit.Alive[i], now+scale(uint64(left), s.jiffies.hz, uint64(time.Second))+1)
	}
	return nil
}

var errNoHold = errors.New("this shield was opened without Hold")

// holdingLocked says why nothing can be said about the hold.
func (s *Shield) holdingLocked() error {
	switch {
	case s.closed:
		return os.ErrClosed
	case !s.opts.Hold:
		return errNoHold
	}
	return nil
}

// Release lets the next SYN of a held source pass, without waiting for the 0.9 s to be over. One that is not held stays
// as it is. Safe for concurrent use.
func (s *Shield) Release(a netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.holdingLocked(); err != nil {
		return err
	}
	m, key := s.gen.maps[shieldMapSeen], sourceOf(a)
	var v shieldSeenValue
	err := m.Lookup(&key, &v)
	if err == nil {
		v.Until = 0
		err = m.Update(&key, &v, ebpf.UpdateExist)
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

// Forget makes the next SYN of a source a first one again. Safe for concurrent use.
func (s *Shield) Forget(a netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.holdingLocked(); err != nil {
		return err
	}
	key := sourceOf(a)
	if err := s.gen.maps[shieldMapSeen].Delete(&key); !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

// Known says of sources that they are as good as seen just now: their SYNs pass for a day. Of more than [KnownSources] some
// may be forgotten sooner. Safe for concurrent use.
func (s *Shield) Known(list []netip.Addr) error {
	for part := range slices.Chunk(list, 256) { // others want the lock too
		if err := s.known(part); err != nil {
			return err
		}
	}
	return nil
}

func (s *Shield) known(list []netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.holdingLocked(); err != nil {
		return err
	}
	now, err := s.jiffiesLocked()
	if err != nil {
		return err
	}
	v := shieldSeenValue{Last: now}
	for _, a := range list {
		key := sourceOf(a)
		if err := s.gen.maps[shieldMapSeen].Update(&key, &v, ebpf.UpdateAny); err != nil {
			return fmt.Errorf("note that %s is known: %w", a, err)
		}
	}
	return nil
}

func sourceOf(a netip.Addr) (k shieldSource) {
	a = a.Unmap()
	b := a.AsSlice()
	k.Net[0] = binary.NativeEndian.Uint32(b)
	if a.Is6() {
		k.Net[1], k.Ipv6 = binary.NativeEndian.Uint32(b[4:]), 1
	}
	return k
}

// First is a SYN that is held. Its source is as good as any in a SYN: it may be forged, and nothing but a question may
// rest on it.
type First struct {
	Source netip.Addr
	Until  time.Time // when the next SYN of this source passes, unless it is blocked by then
}

// FirstSeen calls f with each SYN that is held because its source (IPv4 address, IPv6 /64) was not seen for a day, until
// ctx ends. f should return at once: while it does not, events wait in a ring of 2048, and what does not fit passes
// unasked. A source can come twice, when two CPUs see it in the same instant. One call at a time.
func (s *Shield) FirstSeen(ctx context.Context, f func(First)) error {
	if !s.opts.Hold {
		return errNoHold
	}
	rd, done, err := s.openRing(ctx, shieldMapFirsts)
	if err != nil {
		return err
	}
	defer done()
	var rec ringbuf.Record
	for {
		err := rd.ReadInto(&rec)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read first SYNs: %w", err)
		}
		if len(rec.RawSample) < firstEventSize {
			return fmt.Errorf("read first SYNs: %d bytes, want %d", len(rec.RawSample), firstEventSize)
		}
		until, err := s.heldUntil(binary.NativeEndian.Uint32(rec.RawSample[20:]))
		if err != nil {
			return fmt.Errorf("read first SYNs: %w", err)
		}
		f(First{addrOf(rec.RawSample, rec.RawSample[16] != 0), until})
	}
}

// heldUntil is when a SYN passes that was held at these jiffies, of which the low half is enough: it was moments ago.
func (s *Shield) heldUntil(at uint32) (time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return time.Time{}, os.ErrClosed
	}
	now, err := s.jiffiesLocked()
	if err != nil {
		return time.Time{}, err
	}
	ago := time.Duration(int32(uint32(now)-at)) * time.Second / time.Duration(s.jiffies.hz)
	return time.Now().Add(holdTime - max(0, ago)), nil
}

// Untold is how many first SYNs passed since the shield was opened, because nobody read [Shield.FirstSeen].
func (s *Shield) Untold() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0
	}
	return atomic.LoadUint64(&s.gen.admit.Untold)
}

const firstEventSize = 24 // struct first_event

// addrOf reads the four words of an address.
func addrOf(b []byte, ipv6 bool) netip.Addr {
	if ipv6 {
		return netip.AddrFrom16([16]byte(b[:16]))
	}
	return netip.AddrFrom4([4]byte(b[:4]))
}

// openRing opens a ring for reading. It is the same in all generations of this process, so growth does not end it.
func (s *Shield) openRing(ctx context.Context, name string) (rd *ringbuf.Reader, done func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, nil, os.ErrClosed
	}
	m, err := s.gen.maps[name].Clone()
	if err != nil {
		return nil, nil, fmt.Errorf("open ring %s: %w", name, err)
	}
	if rd, err = ringbuf.NewReader(m); err != nil {
		m.Close()
		return nil, nil, fmt.Errorf("open ring %s: %w", name, err)
	}
	stop := context.AfterFunc(ctx, func() { rd.Close() })
	return rd, func() { stop(); rd.Close(); m.Close() }, nil
}
