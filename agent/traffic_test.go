package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/internal/config"
	"github.com/mxshield/mxshield/agent/internal/maillog"
	"github.com/mxshield/mxshield/scripts/loggen/traffic"
)

// replayed runs a made-up log through parser, scorer and block table.
func replayed(t *testing.T, o traffic.Options) (*replay, *traffic.Log) {
	t.Helper()
	l, err := traffic.New(o)
	if err != nil {
		t.Fatal(err)
	}
	return replayedLines(t, l.Lines), l
}

func replayedLines(t *testing.T, lines []string) *replay {
	t.Helper()
	cfg := config.Default()
	cfg.Traps = new(maillog.Traps)
	for _, s := range traffic.Traps {
		if err := cfg.Traps.Add(s); err != nil {
			t.Fatal(err)
		}
	}
	r, err := newReplay(cfg, replayOptions{files: []string{"-"}}, strings.NewReader(strings.Join(lines, "\n")), io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.run(); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestTraffic: a day of mail with attackers of many kinds, and with honest hosts that look bad. Every attacker is
// found, no honest host is blocked.
func TestTraffic(t *testing.T) {
	seeds := uint64(3)
	if os.Getenv("MXSHIELD_TEST_LONG") != "" {
		seeds = 20
	}
	for seed := range seeds {
		sizes := []int{20_000, 100_000}
		if seed == 0 {
			sizes = append(sizes, 250_000)
		}
		for _, lines := range sizes {
			t.Run(fmt.Sprintf("seed %d, %d lines", seed, lines), func(t *testing.T) {
				r, l := replayed(t, traffic.Options{Seed: seed, Lines: lines})
				attackers, found, roles := 0, 0, map[string]int{}
				for _, h := range l.Truth.Hosts {
					var by *replayBlock
					for p, b := range r.blocked {
						if p.Overlaps(h.Prefix) {
							by = b
						}
					}
					roles[h.Role]++
					if h.Attacker {
						attackers++
						if by != nil {
							found++
						} else {
							t.Errorf("not found: %s, %s", h.Prefix, h.Role)
						}
					} else if by != nil {
						t.Errorf("blocked at %s: %s, %s: %s: %s", by.At, h.Prefix, h.Role, by.Cause, by.Evidence)
					}
				}
				strays := 0
				for _, n := range r.notices {
					if strings.HasPrefix(n.Key, "stray ") {
						strays++
					} else if !slices.Contains(crowds, strings.TrimPrefix(n.Key, "share ")) {
						t.Errorf("notice %+v", n)
					}
				}
				if len(r.notices) != len(crowds)+1 || strays != 1 {
					t.Errorf("%+v, want one of each of %v and one of a domain that has left", r.notices, crowds)
				}
				wide := map[netip.Prefix]bool{}
				for p := range r.blocked {
					if p.Bits() < 32 || p.Addr().Is6() && p.Bits() < 64 {
						wide[p] = true
					}
				}
				for _, p := range []string{"198.18.253.0/24", "198.18.254.0/24", "198.18.255.0/24", "2001:db8:5::/48", "2001:db8:31::/48", "2001:db8:32:1100::/56"} {
					if !wide[netip.MustParsePrefix(p)] {
						t.Errorf("%s is not blocked as a whole: %v", p, wide)
					}
				}
				if honest := len(roles) - attackerRoles(l); honest < 80 {
					t.Errorf("only %d honest roles", honest)
				}
				t.Logf("%d lines, %d hosts of %d roles; %d of %d attackers found by %d blocks", len(l.Lines), len(l.Truth.Hosts), len(roles), found, attackers, len(r.blocks))
			})
		}
	}
}

// crowds are the hosts that are attacked through, and said to be spared.
var crowds = []string{
	"2001:db8:600d:1::/64", "2001:db8:600d:3::/64",
	"203.0.113.40/32", "203.0.113.41/32", "203.0.113.42/32", "203.0.113.43/32",
}

func attackerRoles(l *traffic.Log) int {
	roles := map[string]bool{}
	for _, h := range l.Truth.Hosts {
		if h.Attacker {
			roles[h.Role] = true
		}
	}
	return len(roles)
}

// TestTrafficOfAWrongClock: for five minutes the host's clock is a day ahead, for another five a day behind. The judgement is
// the same, but for what offended just then.
func TestTrafficOfAWrongClock(t *testing.T) {
	l, err := traffic.New(traffic.Options{Seed: 5, Lines: 20_000})
	if err != nil {
		t.Fatal(err)
	}
	const stamp = "2006-01-02T15:04:05.000000-07:00"
	wrong := 0
	lines := slices.Clone(l.Lines)
	for i, s := range lines {
		at, err := time.Parse(stamp, s[:len(stamp)])
		if err != nil {
			t.Fatal(err)
		}
		switch d := at.Sub(traffic.Start); {
		case d > 6*time.Hour && d < 6*time.Hour+5*time.Minute:
			lines[i] = at.Add(24*time.Hour).Format(stamp) + s[len(stamp):]
			wrong++
		case d > 12*time.Hour && d < 12*time.Hour+5*time.Minute:
			lines[i] = at.Add(-24*time.Hour).Format(stamp) + s[len(stamp):]
			wrong++
		}
	}
	r := replayedLines(t, lines)
	missed, attackers := 0, 0
	for _, h := range l.Truth.Hosts {
		found := false
		for p, b := range r.blocked {
			if p.Overlaps(h.Prefix) {
				found = true
				if !h.Attacker {
					t.Errorf("blocked at %s: %s, %s: %s: %s", b.At, h.Prefix, h.Role, b.Cause, b.Evidence)
				}
			}
		}
		if h.Attacker {
			attackers++
			if !found {
				missed++
			}
		}
	}
	t.Logf("%d lines with a wrong stamp, %d of %d attackers missed", wrong, missed, attackers)
	if wrong < 200 || missed > 12 {
		t.Errorf("%d attackers missed", missed)
	}
}

// TestTrafficThroughABalancer: all lines name one address. It must not be blocked, and it must be said.
func TestTrafficThroughABalancer(t *testing.T) {
	for seed := range uint64(3) {
		r, l := replayed(t, traffic.Options{Seed: seed, Lines: 20_000, Balancer: true})
		if len(r.blocks) != 0 || len(r.notices) != 1 || !strings.Contains(r.notices[0].Text, "load balancer") || len(l.Truth.Hosts) != 1 {
			t.Errorf("seed %d: %d blocks, notices %+v", seed, len(r.blocks), r.notices)
		}
	}
}
