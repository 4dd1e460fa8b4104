package resolve

import (
	"container/list"
	"time"

	"github.com/miekg/dns"
)

// cache keeps answers and failures, least recently used ones go first. Its user holds the lock.
type cache struct {
	max, bytes int
	m          map[question]*list.Element
	lru        *list.List // of *cached, the newest in front
}

type cached struct {
	q       question
	ans     Answer
	err     *Error
	expires time.Time
	ttl     time.Duration
	bytes   int
}

const entryBytes = 400 // of an entry without its records: structs, map cell, list element

func newCache(max int) cache {
	return cache{max: max, m: map[question]*list.Element{}, lru: list.New()}
}

// get returns what still holds of a name, nil for nothing.
func (c *cache) get(q question, now time.Time) *cached {
	el := c.m[q]
	if el == nil {
		return nil
	}
	e := el.Value.(*cached)
	left := e.expires.Sub(now)
	if left <= 0 || left > e.ttl { // more than the whole: the clock was set back
		c.drop(el)
		return nil
	}
	c.lru.MoveToFront(el)
	return e
}

func (c *cache) put(q question, a Answer, err *Error, now time.Time, ttl time.Duration) {
	if el := c.m[q]; el != nil {
		c.drop(el)
	}
	e := &cached{q: q, ans: a, err: err, expires: now.Add(ttl), ttl: ttl, bytes: entryBytes + len(q.name)}
	for _, rr := range a.Records {
		e.bytes += 2*dns.Len(rr) + 64
	}
	if e.bytes > c.max {
		return
	}
	c.bytes += e.bytes
	c.m[q] = c.lru.PushFront(e)
	for c.bytes > c.max {
		c.drop(c.lru.Back())
	}
}

func (c *cache) drop(el *list.Element) {
	e := c.lru.Remove(el).(*cached)
	delete(c.m, e.q)
	c.bytes -= e.bytes
}
