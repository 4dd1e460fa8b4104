package bpf

import (
	"math/rand/v2"
	"testing"
)

// heapTable is a table that no program looks at.
func heapTable(v6 bool, entries int) *exactTable {
	t := &exactTable{seeds: newSeeds(), moves: new(uint64)}
	if v6 {
		t.v6 = make([]shieldLineV6, linesFor(entries, slotsV6))
		t.bloom = make([]uint64, len(t.v6))
	} else {
		t.v4 = make([]shieldLineV4, linesFor(entries, slotsV4))
		t.bloom = make([]uint64, len(t.v4))
	}
	return t
}

func (t *exactTable) inFilter(key uint64) bool {
	at := t.placeOf(key)
	return t.bloom[at.word]&at.mask == at.mask
}

// check compares a table with what should be in it.
func (t *exactTable) check(tb testing.TB, want map[uint64]uint32) {
	tb.Helper()
	have := map[uint64]uint32{}
	t.each(func(line, slot int, key uint64, word uint32) {
		if _, twice := have[key]; twice {
			tb.Errorf("%#x is there twice", key)
		}
		have[key] = word
		if l, i, ok := t.find(key); !ok || l != line || i != slot {
			tb.Errorf("%#x is in line %d slot %d, found in %d %d, %v", key, line, slot, l, i, ok)
		}
		if !t.inFilter(key) {
			tb.Errorf("%#x is not in the filter", key)
		}
	})
	if len(have) != len(want) || t.used != len(want) {
		tb.Fatalf("%d entries, %d by count, want %d", len(have), t.used, len(want))
	}
	for key, word := range want {
		if have[key] != word {
			tb.Fatalf("%#x: %#x, want %#x", key, have[key], word)
		}
	}
}

func TestExactTable(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for _, v6 := range []bool{false, true} {
		x := heapTable(v6, 3000)
		want := map[uint64]uint32{}
		var keys []uint64
		for step := range 60_000 {
			key := r.Uint64()
			if !v6 {
				key = uint64(r.Uint32())
			}
			if len(keys) > 0 && (r.IntN(8) == 0 || x.used >= x.capacity()) {
				i := r.IntN(len(keys))
				if _, there := want[keys[i]]; x.remove(keys[i]) != there {
					t.Fatal("remove tells the wrong thing")
				}
				delete(want, keys[i])
				keys[i] = keys[len(keys)-1]
				keys = keys[:len(keys)-1]
				continue
			}
			if _, there := want[key]; !there {
				word := r.Uint32() | 1
				if !x.add(key, word, 0) {
					t.Fatalf("step %d: no room at load %d of %d", step, x.used, x.capacity())
				}
				want[key], keys = word, append(keys, key)
			}
		}
		x.check(t, want)
		x.refreshFilter()
		x.check(t, want)
		wrong := 0
		const asked = 100_000
		for range asked {
			if x.inFilter(r.Uint64() >> 32) {
				wrong++
			}
		}
		t.Logf("v6 %v: %d of %d slots, filter wrong in %.2f%%", v6, x.used, x.lines()*x.slots(), 100*float64(wrong)/asked)
		if wrong > asked/50 {
			t.Errorf("the filter takes %d of %d strangers for known", wrong, asked)
		}

		// What a kill in the middle of a move leaves, and an entry whose filter bits are missing.
		n := 0
		for key, word := range want {
			first, second := x.linesOf(key)
			line, slot, _ := x.find(key)
			other := first + second - line
			if empty := x.free(other); other != line && empty >= 0 {
				*x.drops(line, slot), *x.drops(other, empty) = 3, 4
				x.set(other, empty, key, word)
				n++
			}
		}
		for i := range x.bloom[:10] {
			x.bloom[i] = 0
		}
		if mended := x.scan(); mended < n || n == 0 {
			t.Errorf("%d copies, %d mended", n, mended)
		}
		x.check(t, want)
	}
}

// Whoever owns an IPv6 /32 chooses which of its 2^32 networks attack. Without the seeds, no choice fills two lines.
func TestChosenKeys(t *testing.T) {
	const n = 100_000
	prefix := uint64(0xb80d0120) // 2001:db8::/32 as it stands in memory; the upper half is the attacker's
	patterns := map[string]func(i uint64) uint64{
		"in order":         func(i uint64) uint64 { return prefix | i<<32 },
		"in network order": func(i uint64) uint64 { return prefix | (i>>16|i>>8&0xff<<8|i&0xff<<16)<<40 },
		"upper bits":       func(i uint64) uint64 { return prefix | i<<47 },
		"steps of 2^12":    func(i uint64) uint64 { return prefix | i<<44 ^ i>>20<<32 },
		"steps of 257":     func(i uint64) uint64 { return prefix | i*257<<32 },
		"golden":           func(i uint64) uint64 { return prefix | i*0x9e3779b1<<32 },
		"inverse golden":   func(i uint64) uint64 { return prefix | i*0x144cbc89<<32 },
		"palindromes":      func(i uint64) uint64 { return prefix | (i&0xffff|i<<16)<<32 },
	}
	for name, key := range patterns {
		for range 4 {
			x := heapTable(true, n)
			want := 0
			seen := map[uint64]bool{}
			for i := range uint64(n) {
				if k := key(i); !seen[k] {
					seen[k] = true
					want++
					if !x.add(k, 1, 0) {
						t.Fatalf("%s: no room for number %d", name, i)
					}
				}
			}
			if x.used != want {
				t.Errorf("%s: %d of %d", name, x.used, want)
			}
		}
	}
	// The same for all of a /15 in IPv4.
	x := heapTable(false, 1<<17)
	for i := range uint64(1 << 17) {
		if !x.add(i<<15&0xffffffff|i>>17, 1, 0) {
			t.Fatalf("IPv4: no room for number %d", i)
		}
	}
}

// What the tables weigh at the sizes they grow to, beside what they hold.
func TestGrowthSteps(t *testing.T) {
	const perLine = 64 + 8 // and a word of the filter
	bytes := func(entries, slots int) int { return linesFor(entries, slots) * perLine }
	c, copied, steps := firstCapacity, 0, 0
	for c < 10_000_000 {
		copied += c
		c = capacity(linesFor(nextCapacity(c), slotsV4), slotsV4)
		steps++
	}
	t.Logf("10 million entries: %d MB after %d steps, %.1f copies an entry", bytes(c, slotsV4)/1e6, steps, float64(copied)/1e7)
	if n := bytes(c, slotsV4); n > 200e6 {
		t.Errorf("10 million IPv4 entries take %d bytes", n)
	}
	if n := bytes(firstCapacity, slotsV4) + bytes(firstCapacity, slotsV6); n > 3e6 {
		t.Errorf("an empty shield takes %d bytes", n)
	}
}
