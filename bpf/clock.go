package bpf

import (
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel side compares with CLOCK_BOOTTIME (ns): nobody can step it, and it goes on during suspend. People mean
// wall time. The difference is measured once, kept with the pinned maps, and used in both directions, so that what was
// Set is read back to the nanosecond, by the next agent too. When the wall clock is stepped, blocks would end early
// or late by the step: that is what ClockStepped is for.

const (
	noEnd = math.MaxUint64 // NO_END in maps.h

	// How far wall and boot time may drift apart before everything is worth rewriting. NTP slews both alike.
	maxClockStep = time.Second
)

// wallMinusBoot measures wall minus boot time in ns: the best of a few tries, as the process may be descheduled
// between two readings.
func wallMinusBoot() (int64, error) {
	var offset int64
	best := int64(math.MaxInt64)
	for range 5 {
		var a, w, b unix.Timespec
		for _, c := range []struct {
			id int32
			ts *unix.Timespec
		}{{unix.CLOCK_BOOTTIME, &a}, {unix.CLOCK_REALTIME, &w}, {unix.CLOCK_BOOTTIME, &b}} {
			if err := unix.ClockGettime(c.id, c.ts); err != nil {
				return 0, fmt.Errorf("read clock %d: %w", c.id, err)
			}
		}
		if width := b.Nano() - a.Nano(); width < best {
			best = width
			offset = w.Nano() - a.Nano() - width/2
		}
	}
	return offset, nil
}

var (
	minWall = time.Unix(0, math.MinInt64)
	maxWall = time.Unix(0, math.MaxInt64)
)

// toBoot converts wall time to ns of boot time; the zero time has no end. Times outside of what ns can say (years 1678
// to 2262) are clamped.
func toBoot(t time.Time, offset int64) uint64 {
	switch {
	case t.IsZero():
		return noEnd
	case t.Before(minWall):
		return 0
	case t.After(maxWall):
		t = maxWall
	}
	ns := t.UnixNano()
	if ns < offset { // before this boot: ended
		return 0
	}
	return min(uint64(ns)-uint64(offset), math.MaxInt64)
}

// toWall is the way back.
func toWall(boot uint64, offset int64) time.Time {
	if boot == noEnd {
		return time.Time{}
	}
	return time.Unix(0, int64(boot)).Add(time.Duration(offset))
}

// ClockStepped reports whether the wall clock was stepped by more than a second, against boot time, since the
// entries were written. It then adopts the new difference: the caller must Set every entry again, and until it has,
// the old ones end too early or too late by the step. It returns true once per step.
func (s *Shield) ClockStepped() bool {
	now, err := wallMinusBoot()
	if err != nil {
		return false
	}
	return s.clockIs(now)
}

func (s *Shield) clockIs(offset int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	step := time.Duration(offset - s.clock).Abs()
	if step <= maxClockStep {
		return false
	}
	s.log.Warn("the wall clock was stepped, all blocks are written again", "step", time.Duration(offset-s.clock))
	s.clock = offset
	if err := s.writeStateLocked(); err != nil {
		s.log.Warn("cannot keep the new clock for the next start", "err", err)
	}
	return true
}
