package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"
)

// bulkChunk is how many entries SetMany writes under one lock, and how many memory accesses it has under way at once:
// more than any CPU has, and their lines fit into the smallest cache.
const bulkChunk = 128

// SetMany is Set for many entries, in their order, at a fraction of the cost: there is one growth of the tables where
// there would be several, and the memory of many entries is fetched at once. about is how many entries will come, or 0.
// What goes wrong with an entry is told to failed, and the others go on. Both functions are called without a lock held;
// other calls get in between entries. Safe for concurrent use.
func (s *Shield) SetMany(about int, entries func(yield func(p netip.Prefix, scope uint8, until time.Time) bool), failed func(p netip.Prefix, err error)) {
	b := bulk{s: s, about: about, failed: failed, todo: make([]bulkEntry, 0, bulkChunk)}
	entries(func(p netip.Prefix, scope uint8, until time.Time) bool {
		b.todo = append(b.todo, bulkEntry{p, scope, until})
		if len(b.todo) == bulkChunk {
			b.flush()
		}
		return true
	})
	b.flush()
}

type bulkEntry struct {
	prefix netip.Prefix
	scope  uint8
	until  time.Time
}

type bulk struct {
	s      *Shield
	about  int // entries still to come
	failed func(netip.Prefix, error)
	todo   []bulkEntry

	refused []refusal
	places  [bulkChunk]place
	keys    [bulkChunk]uint64
	touched uint64
}

type refusal struct {
	i   int
	err error
}

// flush writes what is in todo.
func (b *bulk) flush() {
	b.refused = b.refused[:0]
	for done, grown := 0, -1; done < len(b.todo); {
		var err error
		b.s.mu.Lock()
		done, err = b.setLocked(done)
		left := b.about - done
		room := 0
		if err != nil && !b.s.closed {
			t, _ := b.s.exactTable(b.todo[done].prefix)
			room = t.used + max(1, min(left, b.s.opts.MaxExact-t.used))
		}
		b.s.mu.Unlock()
		if err == nil {
			break
		}
		// No room for this one. The rest of the chunk waits.
		e := b.todo[done]
		if grown != done {
			grown = done
			if err = b.s.growTo(e.prefix.Addr().Is4(), room); err == nil {
				continue
			}
			err = hint(fmt.Errorf("%w: it cannot grow: %w", ErrFull, err), "let blocks end earlier")
		} else {
			err = b.s.Set(e.prefix, e.scope, e.until) // other seeds did not help: it tries some more
		}
		if err != nil {
			b.refused = append(b.refused, refusal{done, err})
		}
		done++
	}
	b.about = max(0, b.about-len(b.todo))
	for _, r := range b.refused {
		b.failed(b.todo[r.i].prefix, r.err)
	}
	b.todo = b.todo[:0]
}

// setLocked writes todo from an index on. It stops, with errNoRoom, at one for which the exact table must grow.
func (b *bulk) setLocked(from int) (done int, err error) {
	s := b.s
	for i := from; i < len(b.todo); i++ {
		if p := b.todo[i].prefix; !s.closed && p.IsValid() && isExactSize(p) {
			t, key := s.exactTable(p)
			b.keys[i], b.places[i] = key, t.placeOf(key)
			b.touched += t.touch(b.places[i : i+1])
		}
	}
	for i := from; i < len(b.todo); i++ {
		e := &b.todo[i]
		err := checkEntry(e.prefix, e.scope)
		switch {
		case err != nil:
		case s.closed:
			err = os.ErrClosed
		case s.plainLocked(e.prefix, e.scope):
			t, _ := s.exactTable(e.prefix)
			err = s.putExactAt(e.prefix, entry{word: s.word(e.scope, e.until)}, t, b.keys[i], b.places[i])
		default:
			err = s.setLocked(e.prefix, s.word(e.scope, e.until))
		}
		if errors.Is(err, errNoRoom) {
			return i, err
		}
		if err != nil {
			b.refused = append(b.refused, refusal{i, fmt.Errorf("set %s: %w", e.prefix, err)})
		}
	}
	return len(b.todo), nil
}

// plainLocked says that a prefix belongs into the exact table, and that nothing of it is in the tries.
func (s *Shield) plainLocked(p netip.Prefix, scope uint8) bool {
	return isExactSize(p) && scope != 0 && (len(s.cidrs) == 0 || !s.hasCIDR(p) && s.longer[p] == 0)
}
