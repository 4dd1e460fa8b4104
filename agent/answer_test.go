package main

import (
	"testing"
	"time"
)

func TestBrief(t *testing.T) {
	for d, want := range map[time.Duration]string{
		72 * time.Hour: "72h", time.Hour: "1h", 90 * time.Minute: "1h30m", time.Minute: "1m", 61 * time.Second: "1m1s", 5 * time.Second: "5s", 0: "0s",
		10 * time.Hour: "10h", 71*time.Hour + 59*time.Minute + 57*time.Second: "72h", 20 * time.Minute: "20m", 1499 * time.Millisecond: "1s",
	} {
		if got := brief(d); got != want {
			t.Errorf("%s is %s, want %s", d, got, want)
		}
	}
}
