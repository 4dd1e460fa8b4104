package block

import (
	"cmp"
	"slices"
)

// Families is a number of each address family.
type Families struct {
	IPv4 int `json:"ipv4"`
	IPv6 int `json:"ipv6"`
}

func (f *Families) add(k pkey, d int) {
	if k.is4() {
		f.IPv4 += d
	} else {
		f.IPv6 += d
	}
}

// Sum is the number of both.
func (f Families) Sum() int { return f.IPv4 + f.IPv6 }

// OriginCount is how many entries of one node the table has, whether they hold or not.
type OriginCount struct {
	Origin string `json:"origin"` // empty: of all those that are not named
	Families
}

// maxOriginCounts bounds how many origins are named: whoever is in the cluster can make up more.
const maxOriginCounts = 64

// causesLocked counts the standing blocks.
func (t *Table) causesLocked() map[Cause]Families {
	m := map[Cause]Families{}
	for c, n := range t.causes {
		if n != (Families{}) {
			m[Cause(c)] = n
		}
	}
	return m
}

// originsLocked counts all entries: this node first, then those with the most.
func (t *Table) originsLocked() []OriginCount {
	list := []OriginCount{{t.origins[0].name, t.origins[0].entries}}
	for _, o := range t.origins[1:] {
		if o.entries != (Families{}) {
			list = append(list, OriginCount{o.name, o.entries})
		}
	}
	slices.SortFunc(list[1:], func(a, b OriginCount) int {
		return cmp.Or(cmp.Compare(b.Sum(), a.Sum()), cmp.Compare(a.Origin, b.Origin))
	})
	if len(list) <= maxOriginCounts {
		return list
	}
	var rest OriginCount
	for _, o := range list[maxOriginCounts:] {
		rest.IPv4 += o.IPv4
		rest.IPv6 += o.IPv6
	}
	return append(list[:maxOriginCounts], rest)
}
