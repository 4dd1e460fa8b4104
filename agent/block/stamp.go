package block

import "time"

// A Stamp orders entries across nodes: a hybrid logical clock of 48 bits of milliseconds since 1970 and a 16-bit
// counter (Kulkarni et al. 2014). It is always newer than every stamp seen before, and close to the wall clock.
type Stamp uint64

// StampAt returns the first stamp of the millisecond of t.
func StampAt(t time.Time) Stamp {
	ms := t.UnixMilli()
	if ms < 0 {
		ms = 0
	}
	return Stamp(ms) << 16
}

// Time returns the wall-clock part of the stamp, in UTC.
func (s Stamp) Time() time.Time { return time.UnixMilli(int64(s >> 16)).UTC() }

// stamp32 returns the first stamp of second s since 1970.
func stamp32(s uint32) Stamp { return Stamp(s) * 1000 << 16 }

// MaxAhead is how far ahead of this node's clock another node's stamp may be. Beyond it the entry waits for its time,
// and the stamp does not advance the clock.
const MaxAhead = time.Minute

// clock makes stamps. The wall clock may step back: the stamps do not.
type clock struct{ last Stamp }

func (c *clock) next(now time.Time) Stamp {
	if s := StampAt(now); s > c.last {
		c.last = s
	} else {
		c.last++ // counter overflow carries into the milliseconds, which keeps the order
	}
	return c.last
}

func (c *clock) observe(s Stamp) {
	if s > c.last {
		c.last = s
	}
}
