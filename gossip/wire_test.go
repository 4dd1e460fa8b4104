package gossip

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestGoldenMeta: what older agents wrote is read for ever.
func TestGoldenMeta(t *testing.T) {
	m := meta{session: session{1, 2, 3, 4, 5, 6, 7, 8}, wire: Wire{1, 300}, keys: []KeyID{{0xde, 0xad, 0xbe, 0xef}, {1, 2, 3, 4}}, version: "1.2.3"}
	const golden = "01" + "0102030405060708" + "01" + "ac02" + "02" + "deadbeef" + "01020304" + "05" + "312e322e33"
	if got := hex.EncodeToString(m.append(nil)); got != golden {
		t.Errorf("%s\n%s", got, golden)
	}
	b, _ := hex.DecodeString(golden)
	for _, later := range []string{"", "more"} {
		if got, err := parseMeta(append(bytes.Clone(b), later...)); err != nil || !reflect.DeepEqual(got, m) {
			t.Errorf("%+v, %v", got, err)
		}
	}
	for n := range len(b) {
		if _, err := parseMeta(b[:n]); err == nil {
			t.Errorf("%d bytes were taken", n)
		}
	}
	for what, bad := range map[string]string{
		"version 2": "02" + golden[2:], "wire 0": strings.Replace(golden, "01ac02", "00ac02", 1), "min over max": strings.Replace(golden, "01ac02", "0201", 1),
		"three keys": strings.Replace(golden, "ac0202", "ac0203", 1), "a key twice": strings.Replace(golden, "deadbeef01020304", "deadbeefdeadbeef", 1),
		"control characters": strings.Replace(golden, "31", "1b", 1),
	} {
		b, _ := hex.DecodeString(bad)
		if got, err := parseMeta(b); err == nil {
			t.Errorf("%s: %+v", what, got)
		}
	}
	// The longest that we write fits.
	m.version = strings.Repeat("v", 1000)
	if n := len(m.append(nil)); n > maxMeta {
		t.Errorf("%d bytes", n)
	}
}

func TestCommonWire(t *testing.T) {
	for _, c := range []struct {
		a, b Wire
		want uint32
	}{
		{Wire{1, 1}, Wire{1, 1}, 1}, {Wire{1, 3}, Wire{2, 5}, 3}, {Wire{1, 2}, Wire{3, 4}, 0}, {Wire{1, 2}, Wire{}, 0}, {Wire{2, 9}, Wire{1, 2}, 2},
	} {
		if got := c.a.common(c.b); got != c.want || c.b.common(c.a) != c.want {
			t.Errorf("%v and %v: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

func FuzzMeta(f *testing.F) {
	f.Add(meta{wire: Wire{1, 2}, keys: []KeyID{{1}}, version: "x"}.append(nil))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMeta(b)
		if err != nil {
			return
		}
		again, err := parseMeta(m.append(nil))
		if err != nil || !reflect.DeepEqual(m, again) || len(m.keys) > maxKeys || len(m.version) > maxVersion || m.wire.Min == 0 || m.wire.Min > m.wire.Max {
			t.Fatalf("%+v, %+v, %v", m, again, err)
		}
	})
}

func TestGoldenEnvelope(t *testing.T) {
	b := append(appendEnvelope(nil, kindOne, "mx1"), "hi"...)
	if got := hex.EncodeToString(b); got != "01"+"01"+"03"+"6d7831"+"6869" {
		t.Error(got)
	}
	b = appendBatched(appendBatched(appendEnvelope(nil, kindBatch, "mx1"), []byte("one")), bytes.Repeat([]byte("x"), 200))
	e, err := openEnvelope(b)
	if err != nil || e.kind != kindBatch || e.from != "mx1" {
		t.Fatalf("%+v, %v", e, err)
	}
	list, err := openBatch(e.payload)
	if err != nil || len(list) != 2 || string(list[0]) != "one" || len(list[1]) != 200 {
		t.Errorf("%q, %v", list, err)
	}
	_ = append(list[0], "overwrites the next?"...)
	if string(list[1][:1]) != "x" {
		t.Error("messages of a batch share their space")
	}
	for what, bad := range map[string]string{
		"empty": "", "version": "\x02\x01\x01a", "kind": "\x01\x09\x01a", "no name": "\x01\x01\x00", "cut name": "\x01\x01\x05ab", "a name with a line end": "\x01\x01\x02a\n",
	} {
		if e, err := openEnvelope([]byte(bad)); err == nil {
			t.Errorf("%s: %+v", what, e)
		}
	}
	for what, bad := range map[string]string{
		"cut": "\x05abc", "zero": "\x00", "huge": "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "endless number": strings.Repeat("\x80", 20), "too many": strings.Repeat("\x01a", maxBatch+1),
	} {
		if list, err := openBatch([]byte(bad)); err == nil {
			t.Errorf("%s: %d messages", what, len(list))
		}
	}
}

func FuzzEnvelope(f *testing.F) {
	f.Add(append(appendEnvelope(nil, kindOne, "mx1"), "hi"...))
	f.Add(appendBatched(appendEnvelope(nil, kindBatch, "mx1"), []byte("one")))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := openEnvelope(b)
		if err != nil {
			return
		}
		if !validName(e.from) || !bytes.Equal(append(appendEnvelope(nil, e.kind, e.from), e.payload...), b) {
			t.Fatalf("%+v", e)
		}
		list, err := openBatch(e.payload)
		if err != nil {
			return
		}
		total := 0
		for _, m := range list {
			total += len(m)
		}
		if total > len(b) || len(list) > maxBatch {
			t.Fatalf("%d messages of %d bytes from %d", len(list), total, len(b))
		}
	})
}

func FuzzKeyFile(f *testing.F) {
	f.Add([]byte(testKey(1) + "\n" + testKey(2)))
	f.Fuzz(func(t *testing.T, b []byte) {
		keys, err := parseKeys(b)
		if (err == nil) != (len(keys) > 0) || len(keys) > maxKeys {
			t.Fatalf("%d keys, %v", len(keys), err)
		}
	})
}

func TestParsePeer(t *testing.T) {
	for _, c := range []struct {
		in, host string
		port     uint16
		fixed    bool
	}{
		{"192.0.2.7", "192.0.2.7", 7946, true}, {"192.0.2.7:1", "192.0.2.7", 1, true}, {"2001:db8::7", "2001:db8::7", 7946, true},
		{"[2001:db8::7]", "2001:db8::7", 7946, true}, {"[2001:db8::7]:2", "2001:db8::7", 2, true},
		{"mx2", "mx2", 7946, false}, {"mx2.example.org.", "mx2.example.org.", 7946, false}, {"mx2:3", "mx2", 3, false},
	} {
		p, err := parsePeer(c.in, 7946)
		if err != nil || p.host != c.host || p.port != c.port || p.fixed != c.fixed || c.fixed != (len(p.addrs) == 1) {
			t.Errorf("%s: %+v, %v", c.in, p, err)
		}
	}
	for _, bad := range []string{"", ":7946", "mx2:", "mx2:0", "mx2:99999", "mx2:x", "a b", "a/b", "192.0.2", "0.0.0.0", "::", "224.0.0.1", "-mx", "a..b", "mx1,mx2", "udp://mx1", strings.Repeat("a", 300)} {
		if p, err := parsePeer(bad, 7946); err == nil && bad != "mx2:" {
			t.Errorf("%q: %+v", bad, p)
		}
	}
}

func TestInbox(t *testing.T) {
	b := newInbox()
	big := make([]byte, 1<<20)
	n := 0
	for b.push(delivery{kind: kindOne, peer: "a", msg: big}, false) {
		n++
	}
	if n != maxInbox/(len(big)+deliveryCost) {
		t.Errorf("%d taken", n)
	}
	if !b.push(delivery{kind: kindJoin, peer: "a"}, false) {
		t.Error("a join found no room")
	}
	waited := make(chan bool)
	go func() { waited <- b.push(delivery{kind: kindOne, peer: "late", msg: big}, true) }()
	var order []string
	var mu sync.Mutex
	go b.run(func(d delivery) {
		mu.Lock()
		defer mu.Unlock()
		order = append(order, d.peer)
	})
	if !<-waited {
		t.Error("who waited was refused")
	}
	until(t, "all are handed out, the last one last", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(order) == n+2 && order[n+1] == "late"
	})
	b.close()
	if b.push(delivery{kind: kindOne, peer: "a"}, true) || b.push(delivery{kind: kindLeave, peer: "a"}, true) {
		t.Error("taken after close")
	}
}

// TestBehind: how long messages wait is told from the oldest that was not handled to its end, and by nothing when none waits.
func TestBehind(t *testing.T) {
	b := newInbox()
	took, next := make(chan string), make(chan bool)
	began := time.Now()
	if d := b.behind(began.Add(time.Hour)); d != 0 {
		t.Errorf("an empty one is %s behind", d)
	}
	for _, name := range []string{"a", "b"} {
		b.push(delivery{kind: kindOne, peer: name}, false)
	}
	go b.run(func(d delivery) { took <- d.peer; <-next })
	<-took
	b.push(delivery{kind: kindOne, peer: "c"}, false) // while the first two are under way
	b.mu.Lock()
	now := time.Now()
	b.oldest, b.queue[0].came = now.Add(-time.Hour), now.Add(-time.Minute)
	b.mu.Unlock()
	if d := b.behind(now); d != time.Hour {
		t.Errorf("with the first in hand it is %s behind", d)
	}
	next <- true
	<-took
	if d := b.behind(now); d > time.Since(began) { // b came when this test began
		t.Errorf("with the second in hand it is %s behind", d)
	}
	next <- true
	if <-took != "c" || b.behind(now) != time.Minute {
		t.Errorf("with the third in hand it is %s behind", b.behind(now))
	}
	next <- true
	until(t, "nothing waits", func() bool { return b.behind(now.Add(time.Hour)) == 0 })
	b.close()
}

func TestOutbox(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var count counters
	gate := make(chan error, 100)
	var mu sync.Mutex
	var batches [][]byte
	alive := true
	o := &outbox{
		send: func(_ string, b []byte) error {
			err := <-gate
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				batches = append(batches, b)
			}
			return err
		},
		alive: func(string) bool { mu.Lock(); defer mu.Unlock(); return alive },
		start: appendEnvelope(nil, kindBatch, "me"), count: &count, ctx: ctx, peers: map[string]*lane{},
	}
	msg := make([]byte, 100<<10)
	n := 0
	for o.push("slow", msg) {
		n++
	}
	if n != maxQueue/len(msg) || count.queueFull.Load() != 1 || o.queued("slow") != n*len(msg) {
		t.Errorf("%d taken, %d queued", n, o.queued("slow"))
	}
	if !o.push("other", []byte("x")) {
		t.Error("a full queue holds up another peer")
	}
	for range 40 {
		gate <- nil
	}
	until(t, "all is sent", func() bool { return o.queued("slow") == 0 && count.sentMessages.Load() == uint64(n+1) })
	total := 0
	for _, b := range batches {
		e, err := openEnvelope(b)
		list, err2 := openBatch(e.payload)
		if err != nil || err2 != nil || len(b) > batchSize+1000 {
			t.Fatalf("%d bytes, %v, %v", len(b), err, err2)
		}
		total += len(list)
	}
	if total != n+1 {
		t.Errorf("%d sent of %d", total, n+1)
	}
	for len(gate) > 0 {
		<-gate
	}
	// An error is tried again, and three end the batch.
	gate <- errors.New("no route")
	gate <- nil
	o.push("slow", []byte("again"))
	until(t, "the second attempt", func() bool { return count.sentMessages.Load() == uint64(n+2) })
	for range sendAttempts {
		gate <- errors.New("no route")
	}
	o.push("slow", []byte("lost"))
	until(t, "it is given up", func() bool { return count.unsent.Load() == 1 })
	mu.Lock()
	alive = false
	mu.Unlock()
	o.push("slow", []byte("gone"))
	until(t, "a dead peer's are dropped", func() bool { return count.unsent.Load() == 2 && o.queued("slow") == 0 })
	cancel()
	if o.push("slow", []byte("x")) {
		t.Error("taken after the end")
	}
	o.wg.Wait()
	if o.bytes != 0 || len(o.peers) != 0 {
		t.Errorf("%d bytes in %d lanes", o.bytes, len(o.peers))
	}
}

func TestLog(t *testing.T) {
	var out bytes.Buffer
	var count counters
	now := time.Unix(1e9, 0)
	w := &lineWriter{log: slog.New(slog.NewTextHandler(&out, nil)), count: &count, now: func() time.Time { return now }, left: logBurst}
	say := func(s string) {
		if n, err := w.Write([]byte(s)); n != len(s) || err != nil {
			t.Fatal(n, err)
		}
	}
	say("[WARN] memberlist: hostile\n\x1b[31m line " + strings.Repeat("x", 1000) + "\n")
	if s := out.String(); strings.Count(s, "\n") != 1 || strings.Contains(s, "\x1b") || len(s) > 2*logMax || !strings.Contains(s, "level=WARN") {
		t.Errorf("%q", s)
	}
	out.Reset()
	say("[DEBUG] memberlist: chatter\n")
	if out.Len() > 0 {
		t.Errorf("%q", out.String())
	}
	for range 1000 {
		say("[ERR] memberlist: flood\n")
	}
	if n := strings.Count(out.String(), "\n"); n != logBurst-1 || count.logDropped.Load() != uint64(1000-n) {
		t.Errorf("%d lines, %d dropped", n, count.logDropped.Load())
	}
	out.Reset()
	now = now.Add(logEvery)
	say("[INFO] memberlist: later\n")
	if s := out.String(); !strings.Contains(s, "left_out=981") || strings.Count(s, "\n") != 1 {
		t.Errorf("%q", s)
	}
	for _, s := range []string{"", "\n", "[", "[]", "]", "[ERR"} {
		say(s)
	}
}
