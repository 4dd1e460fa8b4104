package config

// maxRate is the largest limit the kernel program counts.
const maxRate = 1_000_000

func (c *checker) limits(f *file) {
	l := Limits{f.Limits.SYNPerSource, f.Limits.SYNTotal}
	for _, r := range []struct {
		key string
		n   int
	}{{"syn_per_source", l.SYNPerSource}, {"syn_total", l.SYNTotal}} {
		if r.n < 0 || r.n > maxRate {
			c.fault("$.limits."+r.key, "new connections a second: 1 to 1000000, or 0 for no limit", "%d is out of range", r.n)
		}
	}
	if l.SYNTotal > 0 && l.SYNPerSource > l.SYNTotal {
		c.fault("$.limits.syn_per_source", "one source could use up what all others need: raise syn_total", "%d is more than syn_total, %d", l.SYNPerSource, l.SYNTotal)
	}
	c.cfg.Limits = l
}
