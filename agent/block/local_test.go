package block

import (
	"errors"
	"testing"
	"time"
)

// A local block drops as any other and is undone as any other, but is told to nobody: not to the state file, not to
// other nodes. Beside it, what is told to all stays as it was, and ends when it said.
func TestLocal(t *testing.T) {
	sink := newLPM()
	x := New(Options{Origin: "mx1", Sink: sink, Epoch: 7})
	now := t0
	listed := func(p string, d time.Duration) (Result, error) { return x.ApplyLocal(auto(p, DNSBL, d, now), now) }
	must := func(r Result, err error) Result {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	drops := func(p string) Scope { return sink.scope(pfx(p).Addr(), now) }

	r := must(listed("198.18.0.1", time.Hour))
	if !r.Entry.Local || r.Entry.Seq != 0 || r.Already || drops("198.18.0.1") != ScopeMX {
		t.Errorf("%+v", r)
	}
	if d := x.Drain(); len(d) != 0 {
		t.Errorf("it goes to the state file: %v", d)
	}
	if _, seq := x.Number(); seq != 0 || x.Live("mx1", 7) != 0 {
		t.Errorf("it has number %d", seq)
	}
	x.Log("mx1", 7, 0, 1<<60, func(e *Entry) bool { t.Errorf("it is told: %v", e); return true })
	if m := x.Renumber(8, func(LogInfo) uint64 { return 0 }); len(m) != 0 {
		t.Errorf("it is given a number: %v", m)
	}
	if _, err := r.Entry.MarshalBinary(); !errors.Is(err, errEntry) {
		t.Errorf("it can be written: %v", err)
	}
	if _, err := x.Merge(r.Entry, now); !errors.Is(err, errEntry) {
		t.Errorf("it can be merged: %v", err)
	}
	if _, err := x.Load(r.Entry); !errors.Is(err, errEntry) {
		t.Errorf("it can be loaded: %v", err)
	}
	if d := x.Decide(pfx("198.18.0.1"), now); !d.Drop || d.By == nil || !d.By.Local || !x.Holds(d.By) {
		t.Errorf("%+v", d)
	}
	if c := x.Count(now); c.Blocks != 1 {
		t.Errorf("%+v", c)
	}

	// Another answer: its own end, be it sooner.
	now = now.Add(time.Minute)
	r = must(listed("198.18.0.1", 10*time.Minute))
	if !r.Already || !r.Entry.Until.Equal(now.Add(10*time.Minute)) || !r.Entry.Since.Equal(t0) {
		t.Errorf("%+v", r)
	}

	// Evidence of its own: a block with a number stands beside it, and neither takes anything from the other.
	r = must(x.Apply(auto("198.18.0.1", AuthBrute, 5*time.Minute, now), now))
	if r.Entry.Local || r.Entry.Seq != 1 || !r.Entry.Until.Equal(now.Add(5*time.Minute)) || !r.Entry.Since.Equal(now) || drops("198.18.0.1") != ScopeAll {
		t.Errorf("%+v", r)
	}
	r = must(listed("198.18.0.1", 20*time.Minute))
	if !r.Entry.Local || x.Live("mx1", 8) != 1 {
		t.Errorf("%+v", r)
	}
	if d := x.Drain(); len(d) != 1 || d[0].Cause != AuthBrute {
		t.Errorf("%v", d)
	}
	now = now.Add(6 * time.Minute)
	x.Expire(now)
	if drops("198.18.0.1") != ScopeMX {
		t.Error("the local block ended with the other")
	}
	now = now.Add(15 * time.Minute)
	x.Expire(now)
	if drops("198.18.0.1") != ScopeNone || x.Count(now).Entries != 0 || len(sink.set) != 0 {
		t.Errorf("it is still there: %+v", sink.set)
	}

	// A person's word is enough, an unblock holds it off, and what is never blocked is not.
	must(x.Apply(manual("198.18.0.2", now.Add(time.Hour)), now))
	if r = must(listed("198.18.0.2", 2*time.Hour)); r.Entry.Cause != Manual || !r.Already {
		t.Errorf("%+v", r)
	}
	must(listed("198.18.0.3", time.Hour))
	must(x.Apply(Entry{Prefix: pfx("198.18.0.3"), Kind: Clear, Until: now.Add(time.Hour)}, now))
	if drops("198.18.0.3") != ScopeNone {
		t.Error("an unblock does not undo it")
	}
	var held *HeldError
	if _, err := listed("198.18.0.3", time.Hour); !errors.As(err, &held) {
		t.Errorf("it was unblocked: %v", err)
	}
	var never *NeverError
	if err := x.SetNever([]Never{{Prefix: pfx("198.18.1.0/24"), Rule: "spf:example.org", Sender: true}}, now); err != nil {
		t.Fatal(err)
	}
	if _, err := listed("198.18.1.9", time.Hour); !errors.As(err, &never) {
		t.Errorf("it is an allowed sender: %v", err)
	}
	if _, err := listed("198.0.0.0/8", time.Hour); err == nil {
		t.Error("a /8 can be blocked")
	}
	if _, err := x.ApplyLocal(manual("198.18.0.4", now.Add(time.Hour)), now); !errors.Is(err, errEntry) {
		t.Errorf("a manual block can be local: %v", err)
	}
	if r, err := x.Apply(Entry{Prefix: pfx("198.18.0.4"), Kind: Block, Cause: DNSBL, Scope: ScopeMX, Until: now.Add(time.Hour), Local: true}, now); err != nil || r.Entry.Local || r.Entry.Seq == 0 {
		t.Errorf("Apply made a local one: %+v %v", r, err)
	}

	// The next agent knows nothing of it, and takes it out of the kernel.
	must(listed("2001:db8:9::/64", time.Hour))
	y := New(Options{Origin: "mx1", Sink: sink})
	for _, e := range x.Drain() {
		if _, err := y.Load(e); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := y.Resync(sink.all(), now, true); err != nil {
		t.Fatal(err)
	}
	if drops("2001:db8:9::") != ScopeNone || drops("198.18.0.2") != ScopeAll {
		t.Errorf("%+v", sink.set)
	}
}
