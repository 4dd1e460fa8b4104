package verdict

import (
	"container/list"
	"net/netip"

	"github.com/mxshield/mxshield/agent/internal/maillog"
)

const (
	samplePrefixes = 4096
	sampleLines    = 5
	sampleEvery    = 64
)

// Samples keeps up to 5 redacted log lines for each of the 4096 prefixes that were heard of last: what a person looks
// at to believe a verdict. They stay in memory and never leave the host. For one goroutine at a time; the zero value
// works.
type Samples struct {
	order list.List // of *sample, the last used in front
	by    map[netip.Prefix]*list.Element
}

type sample struct {
	prefix netip.Prefix
	lines  []string // a ring once it is full
	next   int
	seen   uint
}

// Add offers the line of an offence. While there is room it is redacted and kept; after that only every 64th line
// takes the place of the oldest, so that a flood costs next to nothing and the samples still are of today. line is not
// kept.
func (s *Samples) Add(p netip.Prefix, line []byte) {
	el := s.by[p]
	if el == nil {
		if s.by == nil {
			s.by = make(map[netip.Prefix]*list.Element)
		}
		if len(s.by) == samplePrefixes {
			last := s.order.Back()
			delete(s.by, last.Value.(*sample).prefix)
			s.order.Remove(last)
		}
		el = s.order.PushFront(&sample{prefix: p})
		s.by[p] = el
	} else {
		s.order.MoveToFront(el)
	}
	x := el.Value.(*sample)
	x.seen++
	if len(x.lines) < sampleLines {
		x.lines = append(x.lines, maillog.Redact(line))
		return
	}
	if x.seen%sampleEvery == 0 {
		x.lines[x.next] = maillog.Redact(line)
		x.next = (x.next + 1) % sampleLines
	}
}

// Get returns the lines kept for a prefix, oldest first.
func (s *Samples) Get(p netip.Prefix) []string {
	el := s.by[p]
	if el == nil {
		return nil
	}
	x := el.Value.(*sample)
	return append(append([]string(nil), x.lines[x.next:]...), x.lines[:x.next]...)
}
