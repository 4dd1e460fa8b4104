package gossip

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"
	"github.com/hashicorp/memberlist"

	"github.com/mxshield/mxshield/scripts/seeds"
)

// sealWith seals as memberlist does, but anything, in either version.
func sealWith(key string, version byte, plain, extra []byte) []byte {
	k, err := ParseKey(key)
	if err != nil {
		panic(err)
	}
	b, _ := aes.NewCipher(k)
	g, _ := cipher.NewGCM(b)
	nonce := make([]byte, nonceSize)
	_, _ = rand.Read(nonce)
	return g.Seal(append([]byte{version}, nonce...), nonce, plain, extra)
}

func labelled(label string, b []byte) []byte {
	return append(append([]byte{typeLabel, byte(len(label))}, label...), b...)
}

func sealedPacket(key string, version byte, plain []byte) []byte {
	return labelled(defaultLabel, sealWith(key, version, plain, []byte(defaultLabel)))
}

// sealedStream is a frame without the label's header.
func sealedStream(key string, version byte, plain []byte) []byte {
	head := binary.BigEndian.AppendUint32([]byte{typeEncrypt}, uint32(1+nonceSize+len(plain)+tagSize))
	return append(head, sealWith(key, version, plain, append(bytes.Clone(head), defaultLabel...))...)
}

// poison is what a holder of the key can send to kill a node that has no guard.
var poison = map[string]struct {
	stream bool
	frame  []byte
	says   string // the panic
}{
	"empty stream":   {true, labelled(defaultLabel, sealedStream(testKey(1), 1, nil)), "index out of range"},
	"padding":        {false, sealedPacket(testKey(1), 0, bytes.Repeat([]byte{255}, 16)), "slice bounds out of range"},
	"stream padding": {true, labelled(defaultLabel, sealedStream(testKey(1), 0, bytes.Repeat([]byte{255}, 16))), "slice bounds out of range"},
}

func sendTo(t testing.TB, addr string, stream bool, b []byte) {
	t.Helper()
	network := "udp"
	if stream {
		network = "tcp"
	}
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	if stream {
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		if b, err := io.ReadAll(c); len(b) > 0 {
			t.Errorf("it answered %q, %v", b, err)
		}
	}
}

// TestUnguardedVictim is no test: it is the process that TestPoison kills.
func TestUnguardedVictim(t *testing.T) {
	what := os.Getenv("MXSHIELD_TEST_POISON")
	if what == "" {
		t.Skip("run by TestPoison")
	}
	key, _ := ParseKey(testKey(1))
	c := memberlist.DefaultLANConfig()
	c.Name, c.BindAddr, c.BindPort, c.AdvertiseAddr, c.SecretKey, c.Label = "victim", "127.0.0.1", 0, "127.0.0.1", key, defaultLabel
	c.Logger = log.New(io.Discard, "", 0)
	m, err := memberlist.Create(c)
	if err != nil {
		t.Fatal(err)
	}
	p := poison[what]
	network := "udp"
	if p.stream {
		network = "tcp"
	}
	s, err := net.Dial(network, m.LocalNode().Address())
	if err != nil {
		t.Fatal(err)
	}
	for range 50 { // a datagram may be lost; the process ends within
		_, _ = s.Write(p.frame)
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("it survived")
}

// TestPoison: memberlist dies of these, and a node of ours does not. If the first half fails, the library was mended,
// and the guard may be simplified.
func TestPoison(t *testing.T) {
	victim := cluster(t, testKey(1), "a", "b")
	a, b := victim[0], victim[1]
	for what, p := range poison {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestUnguardedVictim$")
		cmd.Env = append(os.Environ(), "MXSHIELD_TEST_POISON="+what)
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "panic: ") || !strings.Contains(string(out), p.says) {
			t.Errorf("%s: memberlist alone: %v\n%.2000s", what, err, out)
		}
		before := a.Counters()
		sendTo(t, a.Addr().String(), p.stream, p.frame)
		until(t, "it is counted", func() bool {
			c := a.Counters()
			return c.Malformed+c.Refused > before.Malformed+before.Refused
		})
	}
	// An answer can be poisoned as well: a's call is answered by a listener of ours.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write(poison["empty stream"].frame[2+len(defaultLabel):])
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	before := a.Counters().Malformed
	if _, err := a.list.Join([]string{"x/" + l.Addr().String()}); err == nil {
		t.Error("a poisoned answer was taken")
	}
	if a.Counters().Malformed == before {
		t.Error("the poisoned answer was not counted")
	}
	if !b.Send("a", []byte("alive?")) {
		t.Fatal("not sent")
	}
	until(t, "a is well", func() bool { return a.count("b: alive?") == 1 })
}

// TestSlowStrangers: connections that say nothing, or too little, take no place from members, and go by themselves.
func TestSlowStrangers(t *testing.T) {
	nodes := cluster(t, testKey(1), "a", "b")
	a, b := nodes[0], nodes[1]
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for i := range 100 {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 99, 0, byte(1+i/3))}}
		c, err := d.Dial("tcp", a.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte{typeLabel})
		open = append(open, c)
	}
	until(t, "the places for strangers are taken", func() bool { return a.Counters().Busy >= 100-maxUnknown })
	for i := range 20 {
		if !b.Stream("a", fmt.Appendf(nil, "%d", i)) {
			t.Fatal("not taken")
		}
	}
	until(t, "the member gets through", func() bool { return a.count("b: 19") == 1 && a.count("b: 0") == 1 })
	until(t, "the strangers are gone", func() bool {
		a.trans.mu.Lock()
		defer a.trans.mu.Unlock()
		return a.trans.sum[1] == 0 && len(a.trans.busy[1]) == 0
	})
	late := open0(t, "c", a)
	meet(t, a, b, late)
}

func open0(t testing.TB, name string, to *node) *node {
	return open(t, name, testKey(1), func(o *Options) { o.Peers = []string{to.Addr().String()} })
}

// TestFrames: what each layer of a packet or stream may be. The good ones pass, and each fault alone stops them.
func TestFrames(t *testing.T) {
	key, _ := ParseKey(testKey(1))
	s := &seal{label: defaultLabel}
	if err := s.setKeys([][]byte{key}); err != nil {
		t.Fatal(err)
	}
	user := []byte{typeUser, 1, 2, 3}
	ping := append([]byte{typePing}, "\x81\xa5SeqNo\x01"...)
	compound := func(parts ...[]byte) []byte {
		b := []byte{typeCompound, byte(len(parts))}
		for _, p := range parts {
			b = binary.BigEndian.AppendUint16(b, uint16(len(p)))
		}
		return append(b, bytes.Join(parts, nil)...)
	}
	good := sealedPacket(testKey(1), 1, ping)
	for _, c := range []struct {
		what string
		b    []byte
		want error
	}{
		{"ping", good, nil},
		{"user", sealedPacket(testKey(1), 1, user), nil},
		{"compound", sealedPacket(testKey(1), 1, compound(ping, ping)), nil},
		{"empty compound", sealedPacket(testKey(1), 1, compound()), nil},
		{"nothing", nil, errLabel},
		{"no label", good[2+len(defaultLabel):], errLabel},
		{"another label", labelled("other", good[2+len(defaultLabel):]), errLabel},
		{"relabelled", labelled("mxshielD", good[2+len(defaultLabel):]), errLabel},
		{"another key", sealedPacket(testKey(2), 1, ping), errSeal},
		{"not sealed", labelled(defaultLabel, ping), errSeal},
		{"cut", good[:len(good)-1], errSeal},
		{"empty", sealedPacket(testKey(1), 1, nil), errSeal},
		{"old version", sealedPacket(testKey(1), 0, bytes.Repeat([]byte{16}, 32)), errSeal},
		{"too long", sealedPacket(testKey(1), 1, append(bytes.Clone(user), make([]byte, maxPacket)...)), errTooLong},
		{"compressed", sealedPacket(testKey(1), 1, []byte{9, 0}), errShape},
		{"push/pull", sealedPacket(testKey(1), 1, []byte{typePushPull, 0}), errShape},
		{"compound in compound", sealedPacket(testKey(1), 1, compound(compound(ping))), errShape},
		{"user in compound", sealedPacket(testKey(1), 1, compound(ping, user)), errShape},
		{"compressed in compound", sealedPacket(testKey(1), 1, compound([]byte{9, 0})), errShape},
		{"empty part", sealedPacket(testKey(1), 1, compound(nil)), errShape},
		{"cut compound", sealedPacket(testKey(1), 1, compound(ping, ping)[:20]), errShape},
		{"more than the compound", sealedPacket(testKey(1), 1, append(compound(ping), 0)), errShape},
		{"checksum", sealedPacket(testKey(1), 1, append([]byte{typeCRC, 0, 0, 0, 0}, ping...)), errShape},
	} {
		if _, err := s.openPacket(nil, c.b); err != c.want {
			t.Errorf("packet: %s: %v, want %v", c.what, err, c.want)
		}
	}
	header := func(t byte, fields string) []byte { return append([]byte{t}, fields...) }
	pushPull := header(typePushPull, "\x83\xa5Nodes\x00\xacUserStateLen\x00\xa4Join\xc3")
	for _, c := range []struct {
		what  string
		b     []byte
		asked bool
		want  error
	}{
		{"push/pull", sealedStream(testKey(1), 1, pushPull), true, nil},
		{"answered", sealedStream(testKey(1), 1, pushPull), false, nil},
		{"ping", sealedStream(testKey(1), 1, ping), true, nil},
		{"ping as an answer", sealedStream(testKey(1), 1, ping), false, errShape},
		{"ack", sealedStream(testKey(1), 1, []byte{typeAck}), false, nil},
		{"ack as a call", sealedStream(testKey(1), 1, []byte{typeAck}), true, errShape},
		{"user", sealedStream(testKey(1), 1, header(typeUser, "\x81\xaaUserMsgLen\x03abc")), true, nil},
		{"user that promises more", sealedStream(testKey(1), 1, header(typeUser, "\x81\xaaUserMsgLen\x7fabc")), true, errShape},
		{"user that is negative", sealedStream(testKey(1), 1, header(typeUser, "\x81\xaaUserMsgLen\xffabc")), true, errShape},
		{"a million nodes", sealedStream(testKey(1), 1, header(typePushPull, "\x83\xa5Nodes\xce\x00\x0f\x42\x40\xacUserStateLen\x00\xa4Join\xc3")), true, errShape},
		{"much state", sealedStream(testKey(1), 1, header(typePushPull, "\x83\xa5Nodes\x00\xacUserStateLen\xce\x00\x0f\x42\x40\xa4Join\xc3")), true, errShape},
		{"no header", sealedStream(testKey(1), 1, header(typePushPull, "\xc1")), true, errShape},
		{"compressed", sealedStream(testKey(1), 1, []byte{9, 0}), true, errShape},
		{"alive", sealedStream(testKey(1), 1, []byte{typeAlive, 0}), true, errShape},
		{"empty", sealedStream(testKey(1), 1, nil), true, errShape},
		{"another key", sealedStream(testKey(2), 1, ping), true, errSeal},
		{"old version", sealedStream(testKey(1), 0, bytes.Repeat([]byte{16}, 32)), true, errSeal},
		{"plain", ping, true, errSeal},
		{"too long", binary.BigEndian.AppendUint32([]byte{typeEncrypt}, maxFrame+1), true, errTooLong},
		{"cut", sealedStream(testKey(1), 1, ping)[:20], true, io.EOF},
		{"length changed", func() []byte {
			b := append(sealedStream(testKey(1), 1, ping), 0)
			b[4]++
			return b
		}(), true, errSeal},
	} {
		b := c.b
		if c.asked {
			b = labelled(defaultLabel, b)
		}
		got, err := s.readFrame(bytes.NewReader(b), c.asked, nil)
		if err != c.want || err == nil && !bytes.Equal(got, b) {
			t.Errorf("stream: %s: %v, want %v", c.what, err, c.want)
		}
	}
}

// recorder keeps what comes in.
type recorder struct {
	mu   sync.Mutex
	list [][]byte
}

func (r *recorder) tap(b []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) < 5000 {
		r.list = append(r.list, bytes.Clone(b))
	}
}

func (r *recorder) take() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.list
}

// stable is what no packet from outside may change.
func stable(n *node) (list []Member) {
	for _, m := range n.Members() {
		m.ClockOffset, m.RTT, m.Queued = nil, nil, 0
		list = append(list, m)
	}
	return list
}

// TestGarbage: noise, and recorded packets that were cut, changed or sent again, change nothing and crash nothing.
func TestGarbage(t *testing.T) {
	total := 200_000
	if os.Getenv("MXSHIELD_TEST_LONG") != "" {
		total = 1_000_000
	}
	var rec recorder
	slow := func(o *Options) { o.tune.probe = 0 } // no failure detection that a busy machine could trip
	a := open(t, "a", testKey(1), func(o *Options) { slow(o); o.tune.tap = rec.tap })
	b := open(t, "b", testKey(1), func(o *Options) { slow(o); o.Peers = []string{a.Addr().String()} })
	c := open(t, "c", testKey(1), func(o *Options) { slow(o); o.Peers = []string{a.Addr().String()} })
	meet(t, a, b, c)
	for i := range 50 {
		b.Send("a", fmt.Appendf(nil, "message %d", i))
		c.Send("a", fmt.Appendf(nil, "message %d", i))
	}
	until(t, "the messages came", func() bool { return a.count("b: message 49") == 1 && a.count("c: message 49") == 1 })
	until(t, "pings were recorded", func() bool { return len(rec.take()) > 105 })
	recorded := rec.take()
	before := stable(a)
	var heard map[string]int
	a.note(func() {
		heard = map[string]int{}
		for k := range a.got {
			heard[k] = 1
		}
	})

	seed := seeds.Of(t)
	t.Logf("%d packets, %d recorded", total, len(recorded))
	r := mrand.New(mrand.NewPCG(seed, 1))
	from := netip.MustParseAddrPort("127.66.6.6:6666")
	sock, err := net.Dial("udp", a.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	// What the socket's reader uses is its own: the guard's function may be called from here at the same time.
	space := make([]byte, 0, maxPacket)
	refused := uint64(0)
	for i := range total {
		p := bytes.Clone(recorded[r.IntN(len(recorded))])
		broken := true
		switch r.IntN(5) {
		case 0:
			p = make([]byte, r.IntN(1500))
			for j := range p {
				p[j] = byte(r.Uint32())
			}
		case 1:
			p = p[:r.IntN(len(p))]
		case 2:
			p[r.IntN(len(p))] ^= 1 << r.IntN(8)
		case 3:
			p = append(p, byte(r.Uint32()))
		case 4:
			broken = false // sent again as it was
		}
		if broken {
			refused++
		}
		if i%100 == 0 {
			if _, err := sock.Write(p); err != nil && len(p) > 0 {
				t.Fatal(err)
			}
			if broken {
				refused-- // may get lost
			}
			continue
		}
		a.trans.packet(p, space, from)
	}
	if got := a.Counters().Refused; got < refused {
		t.Errorf("%d of %d broken packets refused", got, refused)
	}
	if got := stable(a); !reflect.DeepEqual(got, before) {
		t.Errorf("members were\n%+v\nand are\n%+v", before, got)
	}
	a.note(func() {
		for k := range a.got {
			if heard[k] == 0 {
				t.Errorf("it heard %q, which nobody said", k)
			}
		}
	})
	if !b.Send("a", []byte("after")) {
		t.Fatal("not sent")
	}
	until(t, "a is well", func() bool { return a.count("b: after") == 1 })
}

// TestGoodByeAgain: a recorded good-bye does not make a member that came back one that left.
func TestGoodByeAgain(t *testing.T) {
	var rec recorder
	a := open(t, "a", testKey(1), func(o *Options) { o.tune.tap = rec.tap })
	b := open0(t, "b", a)
	meet(t, a, b)
	if err := b.Leave(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	b.Close()
	until(t, "b left", func() bool { return a.member("b").State == Left })
	recorded := rec.take()
	b = open0(t, "b", a)
	meet(t, a, b)
	replay := func() {
		for _, p := range recorded {
			a.trans.packet(p, make([]byte, 0, maxPacket), netip.MustParseAddrPort("127.66.6.6:6666"))
		}
	}
	replay()
	if a.table.saidBye("b") {
		t.Error("an old good-bye was believed")
	}
	meet(t, a, b)
	b.Close()
	until(t, "b failed", func() bool { return a.member("b").State == Failed })
	replay()
	if s := a.member("b").State; s == Left {
		t.Errorf("b is %s", s)
	}
}

// TestJoinFlood: a key holder who makes members up by the thousand fills a bounded table, throws out nobody who is there, and
// keeps neither them from coming back nor new hosts from coming, also while he goes on.
func TestJoinFlood(t *testing.T) {
	a := open(t, "a", testKey(1), nil)
	b := open0(t, "b", a)
	meet(t, a, b)
	since := a.member("b").Since
	flood := func(from, n int) {
		for i := range n {
			var msg bytes.Buffer
			err := codec.NewEncoder(&msg, &codec.MsgpackHandle{}).Encode(struct {
				Incarnation uint32
				Node        string
				Addr        []byte
				Port        uint16
				Meta        []byte
				Vsn         []uint8
			}{1, fmt.Sprintf("ghost%d", from+i), []byte{127, 99, byte((from + i) >> 8), byte(from + i)}, 7946, meta{session: session{1}, wire: Wire{1, 1}}.append(nil), []byte{1, 5, 2, 0, 0, 0}})
			if err != nil {
				t.Fatal(err)
			}
			a.trans.packet(sealedPacket(testKey(1), 1, append([]byte{typeAlive}, msg.Bytes()...)), make([]byte, 0, maxPacket), netip.MustParseAddrPort("127.66.6.6:6666"))
		}
	}
	flood(0, 1000)
	until(t, "it has met ghosts", func() bool { return len(a.Members()) > 200 })
	flood(1000, 1000)
	if n := len(a.Members()); n > maxMembers {
		t.Errorf("%d members", n)
	}
	if m := a.member("b"); m.State != Alive || !m.Since.Equal(since) {
		t.Errorf("who was there: %+v", m)
	}
	if !a.Send("b", []byte("after")) {
		t.Error("not sent")
	}
	until(t, "they talk", func() bool { return b.count("a: after") == 1 })
	at := b.Addr().String()
	b.Close()
	b = open(t, "b", testKey(1), func(o *Options) { o.Bind, o.Peers = at, []string{a.Addr().String()} })
	until(t, "it is heard again", func() bool { return b.Send("a", []byte("again")) && a.count("b: again") > 0 })
	if n := len(a.Members()); n > maxMembers {
		t.Errorf("%d members", n)
	}
	ghosts := 2000
	more := func() {
		flood(ghosts, 100)
		ghosts += 100
	}
	c := open0(t, "c", a)
	until(t, "a new host is heard", func() bool { more(); return c.Send("a", []byte("hello")) && a.count("c: hello") > 0 })
	until(t, "and hears", func() bool { more(); return a.Send("c", []byte("welcome")) && c.count("a: welcome") > 0 })
	if n := len(a.Members()); n > maxMembers+beyondEach {
		t.Errorf("%d members", n)
	}
}

// TestRoomBeyond: what is let in although the table is full has a host, and hosts have little of it.
func TestRoomBeyond(t *testing.T) {
	tab := newTable("me", Wire{1, 1}, time.Now)
	node := func(name string, addr string) *memberlist.Node {
		return &memberlist.Node{Name: name, Addr: net.ParseIP(addr), Port: 7946, PMin: 1, PMax: 5, PCur: 2}
	}
	add := func(n *memberlist.Node) bool {
		if tab.admissible(n) != nil {
			return false
		}
		tab.put(n, Alive)
		return true
	}
	for i := range maxMembers {
		if !add(node(fmt.Sprintf("ghost%d", i), fmt.Sprintf("192.0.2.%d", i%250+1))) {
			t.Fatal("the table is full too early")
		}
	}
	tab.prove(netip.MustParseAddr("198.51.100.1"))
	tab.prove(netip.MustParseAddr("2001:db8::1"))
	for _, c := range []struct {
		addr string
		want int
	}{{"203.0.113.9", 0}, {"198.51.100.1", beyondEach}, {"198.51.100.2", 0}, {"2001:db8::2", beyondEach}, {"2001:db8:0:1::1", 0}} {
		n := 0
		for i := range 20 {
			n += btoi(add(node(fmt.Sprintf("at%s-%d", strings.ReplaceAll(c.addr, ":", "-"), i), c.addr)))
		}
		if n != c.want {
			t.Errorf("%d names at %s are let in, want %d", n, c.addr, c.want)
		}
	}
	for h := range 10_000 { // one with a network of hosts
		a := netip.AddrFrom4([4]byte{10, 0, byte(h >> 8), byte(h)})
		tab.prove(a)
		add(node(fmt.Sprintf("net%d", h), a.String()))
	}
	if len(tab.members) != 2*maxMembers || len(tab.proven) > maxProven {
		t.Errorf("%d members, %d hosts", len(tab.members), len(tab.proven))
	}
}

var fuzzNode struct {
	once sync.Once
	c    *Cluster
}

// fuzzTarget is one node for all inputs of a fuzzing process: a crash of any of its goroutines ends it.
func fuzzTarget(f *testing.F) *Cluster {
	fuzzNode.once.Do(func() {
		path := keyFile(f, testKey(1))
		c, err := Open(Options{Name: "fuzz", Bind: newHost() + ":0", KeyFile: path, tune: tuning{probe: time.Hour, pushPull: time.Hour, dead: time.Hour, rejoin: time.Hour}})
		if err != nil {
			f.Fatal(err)
		}
		fuzzNode.c = c
	})
	return fuzzNode.c
}

// FuzzPacket: any packet, and any message a key holder might seal, go through the guard into a live memberlist.
func FuzzPacket(f *testing.F) {
	c := fuzzTarget(f)
	for _, b := range packetSeeds() {
		f.Add(b)
	}
	from := netip.MustParseAddrPort("127.0.0.1:9")
	f.Fuzz(func(t *testing.T, b []byte) {
		defer watch()()
		space := make([]byte, 0, maxPacket)
		c.trans.packet(b, space, from)
		c.trans.packet(sealedPacket(testKey(1), 1, b), space, from)
		c.trans.packet(sealedPacket(testKey(1), 0, b), space, from)
		if n := len(c.Members()); n > maxMembers {
			t.Fatalf("%d members", n)
		}
	})
}

// FuzzStream is the same for streams, both as a call and as an answer to ours.
func FuzzStream(f *testing.F) {
	c := fuzzTarget(f)
	for _, b := range packetSeeds() {
		f.Add(b)
	}
	f.Add(append([]byte{typePushPull}, "\x83\xa5Nodes\x01\xacUserStateLen\x00\xa4Join\xc3\x80"...))
	f.Add(append([]byte{typeUser}, "\x81\xaaUserMsgLen\x03abc"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		defer watch()()
		for _, frame := range [][]byte{b, labelled(defaultLabel, b), labelled(defaultLabel, sealedStream(testKey(1), 1, b)), labelled(defaultLabel, sealedStream(testKey(1), 0, b))} {
			ours, theirs := net.Pipe()
			g := &conn{Conn: ours, t: c.trans}
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _ = theirs.Write(frame)
				_ = theirs.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
				_, _ = io.Copy(io.Discard, theirs)
				theirs.Close()
			}()
			c.trans.receive(g)
			<-done
		}
		if p, err := c.seal.readFrame(bytes.NewReader(sealedStream(testKey(1), 1, b)), false, nil); err == nil && len(p) == 0 {
			t.Fatal("an empty frame passed")
		}
	})
}

// watch ends the process if what follows takes too long: something hangs, and so would an agent.
func watch() func() bool {
	return time.AfterFunc(30*time.Second, func() {
		buf := make([]byte, 1<<20)
		panic("stuck\n" + string(buf[:runtime.Stack(buf, true)]))
	}).Stop
}

func packetSeeds() (list [][]byte) {
	for _, s := range []string{
		"\x00\x82\xa5SeqNo\x01\xa4Node\xa4fuzz",
		"\x04\x86\xabIncarnation\x01\xa4Node\xa1x\xa4Addr\xc4\x04\x7f\x00\x00\x01\xa4Port\xcd\x1f\x0a\xa4Meta\xc0\xa3Vsn\x96\x01\x05\x02\x00\x00\x00",
		"\x05\x83\xabIncarnation\x01\xa4Node\xa1x\xa4From\xa1x",
		"\x03\x83\xabIncarnation\x01\xa4Node\xa4fuzz\xa4From\xa1x",
		"\x07\x01\x00\x05\x00\x81\xa5Seq",
		"\x08\x01\x01\x01xhello", "\x09\x00", "\x0c\x00\x00\x00\x00\x00", "",
	} {
		list = append(list, []byte(s))
	}
	return list
}
