package gossip

import "time"

// Quicken makes a node of the namespace tests decide in seconds.
func Quicken(o *Options) { o.tune = quick }

// FixedKey returns the n-th key that is the same in every run.
func FixedKey(n byte) string { return testKey(n) }

// Quick is what Quicken sets for forgetting the dead.
var Quick = struct{ Dead time.Duration }{quick.dead}
