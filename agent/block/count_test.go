package block

import (
	"fmt"
	"maps"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// checkCounts compares the figures that are kept by cause and origin with what the table lists.
func checkCounts(t *rapid.T, tab *Table, got Counts, now time.Time) {
	causes, origins := map[Cause]Families{}, map[string]Families{}
	add := func(f Families, p netip.Prefix) Families { f.add(keyOf(p), 1); return f }
	standing, _ := tab.List(Query{}, now)
	for _, e := range standing {
		causes[e.Cause] = add(causes[e.Cause], e.Prefix)
	}
	all, _ := tab.List(Query{All: true, Kinds: []Kind{Block, Allow, Clear, Disallow}}, now)
	for _, e := range all {
		origins[e.Origin] = add(origins[e.Origin], e.Prefix)
	}
	if !maps.Equal(got.Causes, causes) {
		t.Fatalf("by cause %v, listed %v", got.Causes, causes)
	}
	for _, o := range got.Origins {
		if o.Families != origins[o.Origin] {
			t.Fatalf("of %s %+v, listed %+v", o.Origin, o.Families, origins[o.Origin])
		}
		delete(origins, o.Origin)
	}
	if len(origins) > 0 {
		t.Fatalf("not counted: %v", origins)
	}
}

// TestOriginCountsAreBounded: whoever has the cluster's key can speak in many names.
func TestOriginCountsAreBounded(t *testing.T) {
	tab := New(Options{Origin: "me"})
	const nodes = 3 * maxOriginCounts
	for i := range nodes {
		for j := range 1 + i%2 {
			merge(t, tab, from(auto(host(2*i+j), Dictionary, time.Hour, t0), fmt.Sprintf("mx%d", i), uint64(j+1), t0), t0)
		}
	}
	list := tab.Count(t0).Origins
	if len(list) != maxOriginCounts+1 || list[0] != (OriginCount{Origin: "me"}) || list[1].IPv4 != 2 {
		t.Fatalf("%d: %+v", len(list), list[:2])
	}
	sum := 0
	for i, o := range list {
		if sum += o.Sum(); (o.Origin == "") != (i == maxOriginCounts) {
			t.Errorf("%d: %+v", i, o)
		}
	}
	if want := nodes * 3 / 2; sum != want {
		t.Errorf("%d entries are counted, want %d", sum, want)
	}
}
