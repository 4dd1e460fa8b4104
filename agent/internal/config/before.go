package config

import "github.com/mxshield/mxshield/agent/internal/dnslist"

// BeforePoints is from how many points on a source is refused before it is accepted; a block by evidence needs threshold.
func (d *DNS) BeforePoints(threshold float64) float64 {
	if d.BeforeFrom > 0 {
		return d.BeforeFrom
	}
	return threshold
}

const beforeHint = "true, or the points from which on a listing refuses a source, such as 60; false is the default"

// before reads dns.before_accept: true, false, or points.
func (c *checker) before(v any) {
	d := &c.cfg.DNS
	switch n, isNumber := number(v); {
	case v == nil, v == false:
		return
	case v == true:
		d.BeforeAccept = true
	case isNumber && n >= 1 && n <= dnslist.MaxPoints:
		d.BeforeAccept, d.BeforeFrom = true, n
	default:
		c.fault("$.dns.before_accept", beforeHint, "%.40v is neither true, false, nor points from 1 to %d", v, dnslist.MaxPoints)
		return
	}
	switch most, need := dnslist.Reach(d.Lists), d.BeforePoints(c.cfg.Block.Threshold); {
	case len(d.Lists) == 0:
		c.fault("$.dns.before_accept", "name lists, or take the key out", "there is no list to ask: dns.lists is empty")
	case most < need:
		c.fault("$.dns.before_accept", "add lists, give codes more points, or say before_accept: 60", "all lists together give a source %g points at most, and %g are needed to refuse it", most, need)
	}
}
