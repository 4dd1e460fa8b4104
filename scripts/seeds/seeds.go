// Package seeds says where tests begin to draw their random numbers.
package seeds

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// Of is t's seed: the same in each run, so that a change is judged by what it changes, and another one in each long run
// (MXSHIELD_TEST_LONG=1), which is there to find what nobody thought of. MXSHIELD_TEST_SEED=N repeats one.
func Of(t testing.TB) uint64 {
	t.Helper()
	seed := uint64(1)
	if os.Getenv("MXSHIELD_TEST_LONG") != "" {
		seed = uint64(time.Now().UnixNano())
	}
	if s := os.Getenv("MXSHIELD_TEST_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("MXSHIELD_TEST_SEED: %v", err)
		}
		seed = n
	}
	t.Logf("seed %d", seed)
	return seed
}
