package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The programs' clock counts units of half a second to a second since the boot, made of jiffies: see clock.h. People
// mean wall time. The difference of the two is measured, kept with the pinned maps, and used in both directions, so what
// was Set is read back as the same unit, by the next agent too. When the wall clock is stepped, or the machine was
// suspended (jiffies stand still then, as the wall clock does not), blocks would end early or late by the step: that is
// what ClockStepped is for.

const (
	timeNoEnd = 0x1fffffff // TIME_NO_END in maps.h
	timeShift = 3          // TIME_SHIFT

	// How far wall clock and jiffies may drift apart before everything is worth rewriting. NTP slews both alike.
	maxClockStep = time.Second
)

// The values of HZ that kernels are built with.
var allHZ = []uint64{100, 250, 300, 1000}

// jiffyClock is the programs' clock as this kernel has it.
type jiffyClock struct {
	hz    uint64
	shift uint32
	prog  *ebpf.Program // mxshield_clock
}

// bootJiffies is what jiffies begin with: INITIAL_JIFFIES in the kernel, five minutes before the low half wraps.
func bootJiffies(hz uint64) uint64 { return 1<<32 - 300*hz }

// shiftFor makes the unit at least half a second and less than one.
func shiftFor(hz uint64) uint32 { return uint32(bits.Len64((hz+1)/2 - 1)) }

// openClock loads the clock program and finds HZ.
func openClock(spec *ebpf.ProgramSpec) (*jiffyClock, error) {
	prog, err := ebpf.NewProgram(spec)
	if err != nil {
		return nil, fmt.Errorf("load program %s: %w", shieldProgMxshieldClock, err)
	}
	c := &jiffyClock{prog: prog}
	j, mono, err := c.read()
	if err != nil {
		prog.Close()
		return nil, err
	}
	hz, ok := hzByUptime(j, mono)
	if !ok {
		// Near five minutes after boot all values of HZ look alike: measure the pace instead.
		time.Sleep(100 * time.Millisecond)
		j2, mono2, err := c.read()
		if err != nil {
			prog.Close()
			return nil, err
		}
		hz = hzByPace(j2-j, mono2-mono)
	}
	c.hz, c.shift = hz, shiftFor(hz)
	return c, nil
}

// read returns jiffies and CLOCK_MONOTONIC (ns) of one moment.
func (c *jiffyClock) read() (jiffies, mono uint64, err error) {
	out := make([]byte, 64)
	if _, err := c.prog.Run(&ebpf.RunOptions{Data: make([]byte, 64), DataOut: out}); err != nil {
		return 0, 0, fmt.Errorf("read the clock of the programs: %w", err)
	}
	return binary.NativeEndian.Uint64(out), binary.NativeEndian.Uint64(out[8:]), nil
}

// hzByUptime finds the HZ whose jiffies fit the uptime best; false if another fits nearly as well, or none does.
func hzByUptime(jiffies, mono uint64) (uint64, bool) {
	type fit struct {
		hz  uint64
		off float64 // seconds
	}
	var fits []fit
	for _, hz := range allHZ {
		up := float64(int64(jiffies-bootJiffies(hz))) / float64(hz)
		fits = append(fits, fit{hz, math.Abs(up - float64(mono)/1e9)})
	}
	slices.SortFunc(fits, func(a, b fit) int {
		if a.off < b.off {
			return -1
		}
		return 1
	})
	// Jiffies begin to count within the first seconds of the boot.
	return fits[0].hz, fits[0].off < 5 && fits[1].off > 10
}

// hzByPace finds the nearest HZ.
func hzByPace(jiffies, ns uint64) uint64 {
	pace := float64(jiffies) * 1e9 / float64(ns)
	return slices.MinFunc(allHZ, func(a, b uint64) int {
		if math.Abs(math.Log(float64(a)/pace)) < math.Abs(math.Log(float64(b)/pace)) {
			return -1
		}
		return 1
	})
}

func (c *jiffyClock) constants() shieldClock {
	return shieldClock{Base: bootJiffies(c.hz), Shift: c.shift}
}

// wallMinusJiffies measures wall time minus jiffies since boot, in ns: the best of a few tries, as the process may be
// descheduled between two readings. A jiffy is added: it may have been about to end, and no block is to end early.
func (c *jiffyClock) wallMinusJiffies() (int64, error) {
	var offset int64
	best := int64(math.MaxInt64)
	for range 3 {
		var a, b unix.Timespec
		errA := unix.ClockGettime(unix.CLOCK_REALTIME, &a)
		j, _, err := c.read()
		if err := errors.Join(errA, err, unix.ClockGettime(unix.CLOCK_REALTIME, &b)); err != nil {
			return 0, fmt.Errorf("compare the clocks: %w", err)
		}
		if width := b.Nano() - a.Nano(); width >= 0 && width < best {
			best = width
			offset = a.Nano() - int64(scale(j+1-bootJiffies(c.hz), 1e9, c.hz))
		}
	}
	if best == math.MaxInt64 {
		return 0, errors.New("compare the clocks: the wall clock runs backwards")
	}
	return offset, nil
}

// scale is x*mul/div without overflow on the way; what does not fit comes out as the largest number.
func scale(x, mul, div uint64) uint64 {
	hi, lo := bits.Mul64(x, mul)
	if hi >= div {
		return math.MaxUint64
	}
	q, _ := bits.Div64(hi, lo, div)
	return q
}

var (
	minWall = time.Unix(0, math.MinInt64)
	maxWall = time.Unix(0, math.MaxInt64)
)

// toUnits converts wall time to units of the programs' clock, rounded up; the zero time has no end. What is later than
// the clock can say (8.5 to 14 years after boot) is clamped.
func (c *jiffyClock) toUnits(t time.Time, offset int64) uint32 {
	switch {
	case t.IsZero():
		return timeNoEnd
	case t.Before(minWall):
		return 0
	case t.After(maxWall):
		t = maxWall
	}
	ns := t.UnixNano()
	if ns <= offset { // before this boot: ended
		return 0
	}
	hi, lo := bits.Mul64(uint64(ns)-uint64(offset), c.hz)
	unit := uint64(1e9) << c.shift
	if hi >= unit {
		return timeNoEnd - 1
	}
	q, rest := bits.Div64(hi, lo, unit)
	if rest > 0 {
		q++
	}
	return uint32(min(q, timeNoEnd-1))
}

// toWall is the way back.
func (c *jiffyClock) toWall(units uint32, offset int64) time.Time {
	if units == timeNoEnd {
		return time.Time{}
	}
	ns := scale(uint64(units), 1e9<<c.shift, c.hz)
	return time.Unix(0, offset).Add(time.Duration(ns))
}

// ClockStepped reports whether the wall clock was stepped by more than a second against the clock of the programs, or
// the machine was suspended for longer, since the entries were written. It then adopts the new difference: the caller
// must Set every entry again, and until it has, the old ones end too early or too late by the step. It returns true
// once per step.
//
// It is to be called every minute or so, and does what else has to be done now and then: it collects the drops of busy
// entries, whose counters in the tables have 32 bits, and makes tables smaller that have been mostly empty for some time.
func (s *Shield) ClockStepped() bool {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return false
	}
	if at := time.Now(); at.Sub(s.collected) > time.Minute {
		s.collected = at
		s.collectDropsLocked()
	}
	offset, err := s.jiffies.wallMinusJiffies()
	s.mu.Unlock()
	s.trim(time.Now())
	return err == nil && s.clockIs(offset)
}

func (s *Shield) clockIs(offset int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	step := time.Duration(offset - s.clock)
	if step.Abs() <= maxClockStep {
		return false
	}
	s.log.Warn("the wall clock was stepped or the machine was suspended, all blocks are written again", "step", step)
	s.clock = offset
	atomic.StoreInt64(&s.gen.state.Clock, offset)
	return true
}
