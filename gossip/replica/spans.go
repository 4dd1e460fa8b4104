package replica

import (
	"slices"
	"sort"
)

// span is the numbers from ... to.
type span struct{ from, to uint64 }

// spans is a set of numbers: in order, apart, none adjacent.
type spans []span

// maxSpans bounds what a node remembers of one origin and epoch: what came out of order behind more gaps than that is
// pulled again.
const maxSpans = 64

func (s spans) has(n uint64) bool {
	i := sort.Search(len(s), func(i int) bool { return s[i].to >= n })
	return i < len(s) && s[i].from <= n
}

func (s spans) top() uint64 {
	if len(s) == 0 {
		return 0
	}
	return s[len(s)-1].to
}

// add takes in from ... to; zero is no number.
func (s spans) add(from, to uint64) spans {
	from = max(from, 1)
	if to < from {
		return s
	}
	if n := len(s); n > 0 && s[n-1].from <= from && from-1 <= s[n-1].to { // the usual case: the next one
		s[n-1].to = max(s[n-1].to, to)
		return s
	}
	i := sort.Search(len(s), func(i int) bool { return s[i].to >= from-1 })
	j := i
	for ; j < len(s) && (s[j].from <= to || s[j].from == to+1); j++ {
		from, to = min(from, s[j].from), max(to, s[j].to)
	}
	return slices.Replace(s, i, j, span{from, to})
}

// minus returns what is in s and not in o.
func (s spans) minus(o spans) (left spans) {
	j := 0
	for _, a := range s {
		for j < len(o) && o[j].to < a.from {
			j++
		}
		for k := j; k < len(o) && o[k].from <= a.to && a.from <= a.to; k++ {
			if o[k].from > a.from {
				left = append(left, span{a.from, o[k].from - 1})
			}
			if o[k].to == 1<<64-1 {
				a.from, a.to = 1, 0
				break
			}
			a.from = o[k].to + 1
		}
		if a.from <= a.to {
			left = append(left, a)
		}
	}
	return left
}

// and returns what is in both.
func (s spans) and(o spans) (both spans) {
	for i, j := 0, 0; i < len(s) && j < len(o); {
		if from, to := max(s[i].from, o[j].from), min(s[i].to, o[j].to); from <= to {
			both = append(both, span{from, to})
		}
		if s[i].to < o[j].to {
			i++
		} else {
			j++
		}
	}
	return both
}

// upto returns what is in s and not above n.
func (s spans) upto(n uint64) spans {
	if n == 0 {
		return nil
	}
	return s.and(spans{{1, n}})
}

// count says how many numbers there are.
func (s spans) count() (n uint64) {
	for _, a := range s {
		n += a.to - a.from + 1
	}
	return n
}

// lowest returns the first n spans.
func (s spans) lowest(n int) spans { return s[:min(n, len(s))] }
