package gossip

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestKeyFile(t *testing.T) {
	k1, k2, k3 := testKey(1), testKey(2), testKey(3)
	for _, c := range []struct {
		text string
		keys int
	}{
		{k1, 1}, {k1 + "\n", 1}, {k1 + "\n" + k2 + "\n", 2}, {" " + k1 + " \r\n\n" + k2, 2},
		{"", 0}, {"\n\n", 0}, {k1 + "\n" + k1, 0}, {k1 + "\n" + k2 + "\n" + k3, 0}, {"secret", 0}, {k1[:20], 0}, {k1 + k2, 0},
		{"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", 0}, {strings.Repeat("\n", maxKeyFile+1), 0},
	} {
		keys, err := parseKeys([]byte(c.text))
		if len(keys) != c.keys || (err == nil) != (c.keys > 0) {
			t.Errorf("%.60q: %d keys, %v", c.text, len(keys), err)
		}
		var h interface{ HintText() string }
		if err != nil && (!errors.As(err, &h) || h.HintText() == "" || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%.60q: %v has no hint, or tells the key", c.text, err)
		}
	}
	path := keyFile(t, k1)
	for _, mode := range []os.FileMode{0o644, 0o640, 0o620, 0o604} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := readKeys(path); err == nil || !strings.Contains(err.Error(), "read by others") {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
	keys, _ := parseKeys([]byte(k2 + "\n" + k1))
	if err := writeKeys(path, keys); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if got, err := readKeys(path); err != nil || len(got) != 2 || keyID(got[0]) != keyID(keys[0]) {
		t.Errorf("%v, %v", got, err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := readKeys(filepath.Dir(path)); err == nil {
		t.Error("a folder was read")
	}
	a, b := NewKey(), NewKey()
	if _, err := ParseKey(a); err != nil || a == b {
		t.Errorf("new keys: %v", err)
	}
	if id := keyID(keys[0]).String(); len(id) != 8 || strings.Contains(k2, id) {
		t.Errorf("id %s", id)
	}
}

// refused checks that a key operation is refused with a hint and that the text names what is in the way.
func refused(t *testing.T, err error, says ...string) {
	t.Helper()
	var h interface{ HintText() string }
	if err == nil || !errors.As(err, &h) || h.HintText() == "" {
		t.Fatalf("not refused, or no hint: %v", err)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%q does not say %q", err, s)
		}
	}
}

// TestRotate: a whole change of keys while everybody talks, with every step that comes too early refused and nothing
// lost.
func TestRotate(t *testing.T) {
	nodes := cluster(t, testKey(1), "a", "b", "c")
	a, b, c := nodes[0], nodes[1], nodes[2]
	old, now, third := testKey(1), testKey(50), testKey(90)
	oldKey, _ := ParseKey(old)
	oldID := keyID(oldKey)

	// Everybody sends to everybody: datagrams one after the other, each after the last one came, and streams.
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var sent [3]atomic.Int64
	for i, n := range nodes {
		peer := nodes[(i+1)%3]
		wg.Add(1)
		go func() {
			defer wg.Done()
			for k := 0; ; k++ {
				select {
				case <-stop:
					return
				default:
				}
				p, s := fmt.Sprintf("packet %d", k), fmt.Sprintf("stream %d", k)
				if !n.Send(peer.Name(), []byte(p)) || !n.Stream(peer.Name(), []byte(s)) {
					t.Errorf("%s could not send number %d", n.Name(), k)
					return
				}
				sent[i].Store(int64(k + 1))
				end := time.Now().Add(20 * time.Second)
				for peer.count(n.Name()+": "+p) == 0 || peer.count(n.Name()+": "+s) == 0 {
					if time.Now().After(end) {
						t.Errorf("%s: number %d was lost", n.Name(), k)
						return
					}
					time.Sleep(time.Millisecond)
				}
			}
		}()
	}
	defer wg.Wait()
	defer close(stop)
	flow := func() {
		t.Helper()
		for i := range nodes {
			from := sent[i].Load()
			until(t, "traffic goes on", func() bool { return sent[i].Load() > from+5 || t.Failed() })
		}
	}
	flow()

	id, err := a.AddKey(now)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := a.AddKey(now); err != nil || again != id {
		t.Errorf("adding it twice: %v", err)
	}
	_, err = a.AddKey(third)
	refused(t, err, "two keys")
	refused(t, a.UseKey(id, false), "b, c")
	refused(t, b.UseKey(id, false), "not on the ring")
	refused(t, a.RemoveKey(oldID, false), "in use here")
	if _, err := b.AddKey(now); err != nil {
		t.Fatal(err)
	}
	until(t, "a knows that b has it", func() bool { return slices.Contains(a.member("b").Keys, id.String()) })
	refused(t, a.UseKey(id, false), "by c")
	if _, err := c.AddKey(now); err != nil {
		t.Fatal(err)
	}
	flow()
	for _, n := range nodes {
		until(t, n.Name()+" may use it", func() bool { return n.UseKey(id, false) == nil })
		if n == a {
			flow() // one uses the new key, two the old one
			refused(t, a.RemoveKey(oldID, false), "b", "c")
		}
	}
	flow()
	for _, n := range nodes {
		until(t, n.Name()+" may remove the old one", func() bool { return n.RemoveKey(oldID, false) == nil })
		if n == a {
			flow()
		}
	}
	flow()
	for _, n := range nodes {
		if got, err := readKeys(n.opt.KeyFile); err != nil || len(got) != 1 || keyID(got[0]) != id {
			t.Errorf("%s: key file: %v, %v", n.Name(), got, err)
		}
		if got := n.ring.GetKeys(); len(got) != 1 || keyID(got[0]) != id {
			t.Errorf("%s: ring: %d keys", n.Name(), len(got))
		}
		until(t, n.Name()+" lists one key", func() bool {
			k := n.Keys()
			return len(k) == 1 && k[0].Used && len(k[0].UsedBy) == 3 && len(k[0].Missing) == 0
		})
		if s := n.Counters(); s.Refused+s.Malformed+s.Unsent+s.InboxFull+s.SendErrors > 0 {
			t.Errorf("%s: %+v", n.Name(), s)
		}
	}
	// Who has the old key only is out.
	stale := open(t, "stale", old, func(o *Options) { o.Peers = []string{a.Addr().String()} })
	until(t, "it is refused", func() bool { return a.Counters().Refused > 2 })
	if len(stale.Peers()) != 0 {
		t.Error("the old key still opens the door")
	}
}

// TestRecordedBeforeRotation: what was recorded under a key that has gone opens nothing any more.
func TestRecordedBeforeRotation(t *testing.T) {
	var rec recorder
	a := open(t, "a", testKey(1), func(o *Options) { o.tune.tap = rec.tap })
	b := open0(t, "b", a)
	meet(t, a, b)
	for i := range 20 {
		b.Send("a", fmt.Appendf(nil, "message %d", i))
	}
	until(t, "the messages came", func() bool { return a.count("b: message 19") == 1 })
	recorded := rec.take()
	recorded = recorded[:len(recorded):len(recorded)]
	oldKey, _ := ParseKey(testKey(1))
	for _, n := range []*node{a, b} {
		if _, err := n.AddKey(testKey(50)); err != nil {
			t.Fatal(err)
		}
	}
	key, _ := ParseKey(testKey(50))
	for _, n := range []*node{a, b} {
		until(t, n.Name()+" may use it", func() bool { return n.UseKey(keyID(key), false) == nil })
	}
	for _, n := range []*node{a, b} {
		until(t, n.Name()+" may remove the old one", func() bool { return n.RemoveKey(keyID(oldKey), false) == nil })
	}
	before := a.Counters().Refused
	for _, p := range recorded {
		a.trans.packet(p, make([]byte, 0, maxPacket), netip.MustParseAddrPort("127.66.6.6:6666"))
	}
	if got := a.Counters().Refused - before; got != uint64(len(recorded)) {
		t.Errorf("%d of %d recorded packets were refused", got, len(recorded))
	}
	if n := a.count("b: message 7"); n != 1 {
		t.Errorf("it heard a message %d times", n)
	}
}

// TestSettle: the old key stays until what was sealed with it has arrived.
func TestSettle(t *testing.T) {
	nodes := []*node{}
	for _, name := range []string{"a", "b"} {
		nodes = append(nodes, open(t, name, testKey(1), func(o *Options) {
			o.tune.settle = time.Hour
			if len(nodes) > 0 {
				o.Peers = []string{nodes[0].Addr().String()}
			}
		}))
	}
	meet(t, nodes...)
	a, b := nodes[0], nodes[1]
	old := a.Keys()[0].ID
	var id KeyID
	for _, n := range nodes {
		var err error
		if id, err = n.AddKey(testKey(50)); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range nodes {
		until(t, "use", func() bool { return n.UseKey(id, false) == nil })
	}
	until(t, "a knows that b uses it", func() bool { return a.member("b").Key == id.String() })
	refused(t, a.RemoveKey(old, false), "a moment ago")
	if err := a.RemoveKey(old, true); err != nil {
		t.Errorf("forced: %v", err)
	}
	until(t, "b sees one key", func() bool { return len(b.member("a").Keys) == 1 })
}

// TestAbsentMember: one that is down, or was never seen, is not locked out by accident.
func TestAbsentMember(t *testing.T) {
	a := open(t, "a", testKey(1), func(o *Options) { o.Peers = []string{"127.66.0.1:1"} })
	b := open0(t, "b", a)
	meet(t, a, b)
	for _, n := range []*node{a, b} {
		if _, err := n.AddKey(testKey(50)); err != nil {
			t.Fatal(err)
		}
	}
	key, _ := ParseKey(testKey(50))
	id := keyID(key)
	until(t, "b holds it", func() bool { return slices.Contains(a.member("b").Keys, id.String()) })
	refused(t, a.UseKey(id, false), "127.66.0.1:1")
	b.Close()
	until(t, "b failed", func() bool { return a.member("b").State == Failed })
	if err := a.UseKey(id, true); err != nil {
		t.Fatal(err)
	}
	// b is down with the old key in use; it could come back with it.
	refused(t, a.RemoveKey(a.Keys()[1].ID, false), "b")
}

func TestKeylessCluster(t *testing.T) {
	a := open(t, "a", "", nil)
	_, err := a.AddKey(testKey(1))
	refused(t, err, "no key")
	refused(t, a.UseKey(KeyID{}, true), "no key")
	refused(t, a.RemoveKey(KeyID{}, true), "no key")
	if k := a.Keys(); len(k) != 0 {
		t.Errorf("%+v", k)
	}
}

// TestKeyFileGone: a key that cannot be kept is not taken.
func TestKeyFileGone(t *testing.T) {
	a := open(t, "a", testKey(1), nil)
	if err := os.RemoveAll(filepath.Dir(a.opt.KeyFile)); err != nil {
		t.Fatal(err)
	}
	_, err := a.AddKey(testKey(50))
	refused(t, err, "write the cluster key")
	if len(a.Keys()) != 1 || len(a.ring.GetKeys()) != 1 {
		t.Error("it was taken")
	}
}
