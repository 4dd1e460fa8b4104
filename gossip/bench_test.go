package gossip

import (
	"fmt"
	"io"
	"log"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// blockSize is what one packed block record takes on the wire, in bytes.
const blockSize = 20

// arrivals notes when each message reached each receiver.
type arrivals struct {
	mu   sync.Mutex
	sent map[string]time.Time
	took []time.Duration
	seen map[string]bool
}

func newArrivals() *arrivals {
	return &arrivals{sent: map[string]time.Time{}, seen: map[string]bool{}}
}

func (a *arrivals) send(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.sent[id] = time.Now()
}

func (a *arrivals) got(who string, msg []byte) {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	id := string(msg)
	if k := who + id; !a.seen[k] && !a.sent[id].IsZero() {
		a.seen[k] = true
		a.took = append(a.took, now.Sub(a.sent[id]))
	}
}

func (a *arrivals) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.took)
}

// wait is over when all came, or nothing more did for a while.
func (a *arrivals) wait(all int, patience time.Duration) {
	last, since := -1, time.Now()
	for {
		n := a.count()
		if n == all {
			return
		}
		if n != last {
			last, since = n, time.Now()
		}
		if time.Since(since) > patience {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// result is what one way of spreading came to.
type result struct {
	delivered      float64 // of single messages
	p50, p99       time.Duration
	burst, perSecs float64 // of a burst: the part that arrived, and messages/s at each node until the last of them
}

// spread measures single messages, each after the one before arrived or 3 s, then a burst.
func spread(a *arrivals, receivers, singles, burst int, send func(msg []byte)) (r result) {
	for i := range singles {
		id := fmt.Sprintf("%-*d", blockSize, i)
		a.send(id)
		send([]byte(id))
		a.wait((i+1)*receivers, 3*time.Second)
	}
	slices.Sort(a.took)
	n := len(a.took)
	r.delivered = float64(n) / float64(singles*receivers)
	r.p50, r.p99 = a.took[n/2], a.took[n*99/100]
	began := time.Now()
	for i := range burst {
		id := fmt.Sprintf("b%-*d", blockSize-1, i)
		a.send(id)
		send([]byte(id))
	}
	a.wait(n+burst*receivers, 3*time.Second)
	a.mu.Lock()
	defer a.mu.Unlock()
	came := a.took[n:]
	r.burst = float64(len(came)) / float64(burst*receivers)
	// The last arrival is the latest send time plus its way; waiting in vain does not count.
	end := began
	for _, t := range a.sent {
		if t.After(end) {
			end = t
		}
	}
	if len(came) > 0 {
		end = end.Add(slices.Max(came))
	}
	r.perSecs = float64(len(came)) / float64(receivers) / end.Sub(began).Seconds()
	return r
}

type queueDelegate struct {
	name string
	a    *arrivals
	q    *memberlist.TransmitLimitedQueue
}

func (d *queueDelegate) NodeMeta(int) []byte { return nil }
func (d *queueDelegate) NotifyMsg(b []byte)  { d.got(b); d.again(b) }
func (d *queueDelegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.q.GetBroadcasts(overhead, limit)
}
func (d *queueDelegate) LocalState(bool) []byte        { return nil }
func (d *queueDelegate) MergeRemoteState([]byte, bool) {}

func (d *queueDelegate) got(b []byte) {
	if d.name != "n0" { // the origin hears its own
		d.a.got(d.name, b)
	}
}

var forwarded sync.Map

// again passes on what is new, as users of the queue do.
func (d *queueDelegate) again(b []byte) {
	if _, old := forwarded.LoadOrStore(fmt.Sprintf("%p", d.a)+d.name+string(b), true); !old {
		d.q.QueueBroadcast(broadcast(slices.Clone(b)))
	}
}

type broadcast []byte

func (b broadcast) Invalidates(memberlist.Broadcast) bool { return false }
func (b broadcast) Message() []byte                       { return b }
func (b broadcast) Finished()                             {}
func (b broadcast) UniqueBroadcast()                      {}

// BenchmarkFanout spreads block-sized messages, one message each, from one node to all: by this package, packet by packet
// to every member, and by memberlist's own broadcast queue at its LAN defaults with encryption. Ratios are queue to ours.
func BenchmarkFanout(b *testing.B) {
	for _, nodes := range []int{5, 20} {
		b.Run(fmt.Sprintf("nodes=%d", nodes), func(b *testing.B) {
			var names []string
			ours, theirs := newArrivals(), newArrivals()
			var members []*node
			for i := range nodes {
				name := fmt.Sprintf("n%d", i)
				names = append(names, name)
				members = append(members, open(b, name, testKey(1), func(o *Options) {
					o.tune = tuning{}
					o.Handler = func(_ string, m []byte) { ours.got(name, m) }
					if i > 0 {
						o.Peers = []string{members[0].Addr().String()}
					}
				}))
			}
			meet(b, members...)
			key, _ := ParseKey(testKey(1))
			var lists []*memberlist.Memberlist
			var first *queueDelegate
			for i := range nodes {
				c := memberlist.DefaultLANConfig()
				c.Name, c.BindAddr, c.BindPort, c.AdvertiseAddr, c.SecretKey = names[i], newHost(), 0, "", key
				c.Logger = log.New(io.Discard, "", 0)
				d := &queueDelegate{name: names[i], a: theirs, q: &memberlist.TransmitLimitedQueue{RetransmitMult: c.RetransmitMult, NumNodes: func() int { return nodes }}}
				c.Delegate = d
				l, err := memberlist.Create(c)
				if err != nil {
					b.Fatal(err)
				}
				defer l.Shutdown()
				if i == 0 {
					first = d
				} else if _, err := l.Join([]string{lists[0].LocalNode().Address()}); err != nil {
					b.Fatal(err)
				}
				lists = append(lists, l)
			}
			for _, l := range lists {
				until(b, "the queue's members meet", func() bool { return l.NumMembers() == nodes })
			}
			const singles, burst = 20, 500
			for b.Loop() {
				b.StopTimer()
				*ours, *theirs = arrivals{sent: map[string]time.Time{}, seen: map[string]bool{}}, arrivals{sent: map[string]time.Time{}, seen: map[string]bool{}}
				forwarded.Clear()
				b.StartTimer()
				a := spread(ours, nodes-1, singles, burst, func(m []byte) {
					for _, p := range names[1:] {
						members[0].Send(p, m)
					}
				})
				q := spread(theirs, nodes-1, singles, burst, func(m []byte) {
					forwarded.Store(fmt.Sprintf("%p", theirs)+names[0]+string(m), true)
					first.q.QueueBroadcast(broadcast(m))
				})
				b.ReportMetric(a.delivered, "delivered")
				b.ReportMetric(q.delivered, "queue-delivered")
				b.ReportMetric(a.burst, "burst-delivered")
				b.ReportMetric(q.burst, "queue-burst-delivered")
				b.ReportMetric(float64(q.p50)/float64(a.p50), "p50-ratio")
				b.ReportMetric(float64(q.p99)/float64(a.p99), "p99-ratio")
				b.ReportMetric(a.perSecs/q.perSecs, "rate-ratio")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}
