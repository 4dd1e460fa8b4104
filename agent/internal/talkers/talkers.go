// Package talkers finds out of a stream of samples who talks most right now. It keeps a fixed number of sources,
// whatever the stream is like, so forged addresses cannot make it grow.
//
// Space-saving (Metwally, Agrawal, El Abbadi 2005): a source that is not known takes the place of the one with the least
// weight, and inherits that weight as its possible error. Who has more than 1/max of all samples is always known.
// Weights decay by half each HalfLife; instead of lowering all of them, new samples weigh more and more, which keeps
// the order, and now and then everything is scaled down.
package talkers

import (
	"container/heap"
	"maps"
	"math"
	"net/netip"
	"slices"
	"time"
)

const (
	// HalfLife is how fast samples are forgotten. Rates are averages of about this time.
	HalfLife = 10 * time.Second
	// Forget is how long after its last sample a source is still told.
	Forget = time.Minute

	maxPorts = 8 // of each source
)

// Talker is what is known of a source. Rates are samples per second.
type Talker struct {
	Source  netip.Prefix // IPv4 /32, IPv6 /64
	Rate    float64      // at least; the true one is up to Error more or less
	Error   float64
	Reasons map[string]float64 // rates
	Ports   []uint16           // sorted, at most 8
	Last    time.Time
}

// Talkers is not safe for concurrent use.
type Talkers struct {
	max   int
	epoch time.Time // a sample of this time weighs 1
	heap  byWeight
	index map[netip.Prefix]*talker
	total map[string]float64
}

type talker struct {
	source        netip.Prefix
	weight, error float64
	reasons       map[string]float64
	ports         []uint16
	last          time.Time
	at            int // in the heap
}

// New returns an empty one that keeps at most max sources.
func New(max int) *Talkers {
	return &Talkers{max: max, index: map[netip.Prefix]*talker{}, total: map[string]float64{}}
}

// Add takes a sample. Times may be out of order a little; reasons are words of a closed set.
func (t *Talkers) Add(source netip.Addr, reason string, port uint16, at time.Time) {
	source = source.Unmap().WithZone("")
	if !source.IsValid() {
		return
	}
	if at.Sub(t.epoch) < -Forget { // the clock was set back: nothing would weigh anything until it has caught up
		*t = *New(t.max)
	}
	if t.epoch.IsZero() {
		t.epoch = at
	}
	w := math.Exp2(float64(at.Sub(t.epoch)) / float64(HalfLife))
	if w > 1e9 {
		t.rebase(at)
		w = 1
	}
	t.total[reason] += w
	bits := 32
	if source.Is6() {
		bits = 64
	}
	p, _ := source.Prefix(bits) // of a valid address without a zone there is always one
	k := t.index[p]
	switch {
	case k != nil:
	case len(t.heap) < t.max:
		k = &talker{source: p, reasons: map[string]float64{}}
		t.index[p] = k
		heap.Push(&t.heap, k)
	default:
		k = t.heap[0]
		delete(t.index, k.source)
		*k = talker{source: p, weight: k.weight, error: k.weight, reasons: k.reasons, ports: k.ports[:0]}
		clear(k.reasons)
		t.index[p] = k
	}
	k.weight += w
	k.reasons[reason] += w
	if i, ok := slices.BinarySearch(k.ports, port); !ok && len(k.ports) < maxPorts {
		k.ports = slices.Insert(k.ports, i, port)
	}
	if at.After(k.last) {
		k.last = at
	}
	heap.Fix(&t.heap, k.at)
}

// rebase makes now the time at which a sample weighs 1.
func (t *Talkers) rebase(now time.Time) {
	by := math.Exp2(-float64(now.Sub(t.epoch)) / float64(HalfLife))
	for _, k := range t.heap { // all alike, so the heap stays one
		k.weight *= by
		k.error *= by
		scale(k.reasons, by)
	}
	scale(t.total, by)
	t.epoch = now
}

func scale(m map[string]float64, by float64) {
	for k := range m {
		m[k] *= by
	}
}

// Top returns the n loudest sources, the loudest first, and the rates of all by reason. What has not been heard for
// Forget is left out.
func (t *Talkers) Top(n int, now time.Time) (list []Talker, total map[string]float64) {
	total = map[string]float64{}
	if t.epoch.IsZero() {
		return nil, total
	}
	if now.Before(t.epoch) {
		now = t.epoch
	}
	// A steady rate r weighs r * HalfLife / ln 2 in the end.
	perSecond := math.Exp2(-float64(now.Sub(t.epoch))/float64(HalfLife)) * math.Ln2 / HalfLife.Seconds()
	for r, w := range t.total {
		if rate := w * perSecond; rate > 1e-3 {
			total[r] = rate
		}
	}
	live := make([]*talker, 0, len(t.heap))
	for _, k := range t.heap {
		if now.Sub(k.last) < Forget {
			live = append(live, k)
		}
	}
	slices.SortFunc(live, func(a, b *talker) int {
		switch d := (b.weight - b.error) - (a.weight - a.error); {
		case d > 0:
			return 1
		case d < 0:
			return -1
		}
		return a.source.Compare(b.source)
	})
	for _, k := range live[:min(n, len(live))] {
		x := Talker{
			Source: k.source, Rate: (k.weight - k.error) * perSecond, Error: k.error * perSecond,
			Reasons: maps.Clone(k.reasons), Ports: slices.Clone(k.ports), Last: k.last,
		}
		scale(x.Reasons, perSecond)
		list = append(list, x)
	}
	return list, total
}

// byWeight is a heap, the least on top.
type byWeight []*talker

func (h byWeight) Len() int           { return len(h) }
func (h byWeight) Less(i, j int) bool { return h[i].weight < h[j].weight }
func (h byWeight) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}
func (h *byWeight) Push(x any) {
	k := x.(*talker)
	k.at = len(*h)
	*h = append(*h, k)
}
func (h *byWeight) Pop() any { panic("nothing is ever popped") }
