package gossip

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// State is how a member is doing.
type State string

const (
	Alive        State = "alive"
	Failed       State = "failed"       // does not answer
	Left         State = "left"         // said good-bye
	Incompatible State = "incompatible" // alive, but speaks no version of the replication protocol that we do
	Unreached    State = "unreached"    // a configured peer that no member answers for
)

// Member is one line of `mxshieldctl peers`.
type Member struct {
	Name    string    `json:"name"` // of an unreached peer: as the config has it
	Addr    string    `json:"addr,omitempty"`
	State   State     `json:"state"`
	Self    bool      `json:"self,omitempty"`
	Since   time.Time `json:"since"`             // of the state
	Version string    `json:"version,omitempty"` // of the agent
	Wire    uint32    `json:"wire,omitempty"`    // the version of the replication protocol that both speak
	WireMin uint32    `json:"wire_min,omitempty"`
	WireMax uint32    `json:"wire_max,omitempty"`
	Key     string    `json:"key,omitempty"` // id of the key it seals with
	Keys    []string  `json:"keys,omitempty"`
	// ClockOffset is how far its clock is ahead of ours, in seconds, give or take half of RTT. Absent: not measured yet.
	ClockOffset *float64 `json:"clock_offset,omitempty"`
	RTT         *float64 `json:"rtt,omitempty"`    // seconds
	Queued      int      `json:"queued,omitempty"` // bytes that wait for it
	Problem     string   `json:"problem,omitempty"`

	keys     []KeyID
	keySince time.Time
}

// maxMembers bounds what a key holder can make us remember. The protocol is meant for up to 200. As many more are let in
// while there is no room, if there was a stream with their address lately that a key of ours opens: nobody can make up
// that, so names without a host keep no host out. A host has beyondEach of these.
const (
	maxMembers = 256
	beyondEach = 8
	provenFor  = time.Minute
	maxProven  = 256
)

// clockSamples is how many measurements of a peer's clock are kept: the one with the shortest round trip counts.
const clockSamples = 4

type member struct {
	node     memberlist.Node // a copy
	meta     meta
	state    State // Alive, Failed, Left
	since    time.Time
	keySince time.Time // uses its key since, as seen here
	clock    []sample  // oldest first
	conflict string
	bye      bool

	beyond  bool      // let in although there was no room
	answers session   // the session of its last answer to a ping; zero: none
	called  time.Time // when we last called it because that was not the one it had told of
}

type sample struct{ offset, rtt time.Duration }

func (m *member) addr() netip.AddrPort {
	a, _ := netip.AddrFromSlice(m.node.Addr)
	return netip.AddrPortFrom(a.Unmap(), m.node.Port)
}

func (m *member) bestClock() (s sample, ok bool) {
	if len(m.clock) == 0 {
		return s, false
	}
	return slices.MinFunc(m.clock, func(a, b sample) int { return cmp.Compare(a.rtt, b.rtt) }), true
}

// table is what we know of the members. memberlist hands out pointers into its own state, which it changes under its
// own lock; copies made in its callbacks are safe.
type table struct {
	self string
	wire Wire
	now  func() time.Time

	mu      sync.Mutex
	members map[string]*member
	addrs   map[netip.Addr]int       // how many members have it
	proven  map[netip.Addr]time.Time // hosts with which there was a stream, and when
}

func newTable(self string, wire Wire, now func() time.Time) *table {
	return &table{self: self, wire: wire, now: now, members: map[string]*member{}, addrs: map[netip.Addr]int{}, proven: map[netip.Addr]time.Time{}}
}

// admissible says why memberlist should not take a node in, from an alive message.
func (t *table) admissible(n *memberlist.Node) error {
	a, ok := netip.AddrFromSlice(n.Addr)
	switch {
	case !validName(n.Name):
		return fmt.Errorf("%.80q is no name", n.Name)
	case !ok || a.IsUnspecified() || a.IsMulticast() || n.Port == 0:
		return fmt.Errorf("%s:%d is no address of a host", a, n.Port)
	case len(n.Meta) > maxMeta:
		return fmt.Errorf("%d bytes of meta", len(n.Meta))
	// memberlist refuses every later push/pull if one member lies about these. All of ours say 2 and 0.
	case n.PMin > memberlist.ProtocolVersion2Compatible || n.PMax < memberlist.ProtocolVersion2Compatible || n.PCur != memberlist.ProtocolVersion2Compatible || n.DMin != 0 || n.DMax != 0 || n.DCur != 0:
		return fmt.Errorf("protocol version %d (%d to %d)", n.PCur, n.PMin, n.PMax)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.members[n.Name] == nil && len(t.members) >= maxMembers && !t.forgetLocked() && !t.roomBeyondLocked(hostOf(a)) {
		return fmt.Errorf("more than %d members", maxMembers)
	}
	return nil
}

// hostOf is what one host has for sure: an IPv4 address, or a /64.
func hostOf(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		p, _ := a.Prefix(64)
		return p.Addr()
	}
	return a
}

// prove notes that there is a host at an address, which has a key of ours.
func (t *table) prove(a netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.proven[hostOf(a)] = time.Now(); len(t.proven) <= maxProven {
		return
	}
	oldest := hostOf(a)
	for h, at := range t.proven {
		if at.Before(t.proven[oldest]) {
			oldest = h
		}
	}
	delete(t.proven, oldest)
}

func (t *table) roomBeyondLocked(host netip.Addr) bool {
	at, ok := t.proven[host]
	if !ok || time.Since(at) > provenFor || len(t.members) >= 2*maxMembers {
		return false
	}
	n := 0
	for _, m := range t.members {
		n += btoi(m.beyond && hostOf(m.addr().Addr()) == host)
	}
	return n < beyondEach
}

// forgetLocked makes room: those that left go first, then those that failed longest ago.
func (t *table) forgetLocked() bool {
	var victim *member
	for _, m := range t.members {
		if m.state == Alive || m.node.Name == t.self {
			continue
		}
		if victim == nil || cmp.Or(cmp.Compare(btoi(m.state == Failed), btoi(victim.state == Failed)), m.since.Compare(victim.since)) < 0 {
			victim = m
		}
	}
	if victim == nil {
		return false
	}
	t.removeLocked(victim)
	return true
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (t *table) removeLocked(m *member) {
	delete(t.members, m.node.Name)
	t.countLocked(m.addr().Addr(), -1)
}

func (t *table) countLocked(a netip.Addr, d int) {
	if t.addrs[a] += d; t.addrs[a] <= 0 {
		delete(t.addrs, a)
	}
}

// put takes over what memberlist says of a node; joined says that it was not alive before.
func (t *table) put(n *memberlist.Node, state State) (joined bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.members[n.Name]
	now := t.now()
	if m == nil {
		m = &member{since: now, beyond: len(t.members) >= maxMembers}
		t.members[n.Name] = m
	} else {
		t.countLocked(m.addr().Addr(), -1)
	}
	var used KeyID
	if len(m.meta.keys) > 0 {
		used = m.meta.keys[0]
	}
	m.node = *n
	m.node.Addr = slices.Clone(n.Addr)
	m.node.Meta = nil
	m.meta, _ = parseMeta(n.Meta) // one that cannot be read has no wire version: incompatible
	t.countLocked(m.addr().Addr(), 1)
	if len(m.meta.keys) > 0 && (m.keySince.IsZero() || used != m.meta.keys[0]) {
		m.keySince = time.Now()
	}
	if m.state != state {
		joined = state == Alive
		m.state, m.since = state, now
		if joined {
			m.clock, m.conflict, m.bye = nil, "", false
		}
	}
	return joined
}

// goodBye notes that a member is about to leave. It may come after memberlist's own word for it.
func (t *table) goodBye(name string, of session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m := t.members[name]; m != nil && name != t.self && m.meta.session == of {
		m.bye = true
		if m.state == Failed {
			m.state = Left
		}
	}
}

// answered notes the session in which a member answers pings, and says whether it is another than that member told of.
func (t *table) answered(name string, in session) (changed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.members[name]
	if m == nil || name == t.self {
		return false
	}
	m.answers = in
	return m.restarted()
}

// restarted says that a member was started anew and has not told so: it answers, but may know nobody here.
func (m *member) restarted() bool {
	return m.state == Alive && m.answers != (session{}) && m.answers != m.meta.session
}

// restarted lists the members to call for that, each at most once in a while: whoever answers each ping in another
// session costs one call then.
func (t *table) restarted(every time.Duration) (list []memberlist.Node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.members {
		if m.restarted() && (m.called.IsZero() || time.Since(m.called) >= every) {
			m.called = time.Now()
			list = append(list, m.node)
		}
	}
	return list
}

func (t *table) saidBye(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.members[name]
	return m != nil && m.bye
}

func (t *table) setSelf(b []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m := t.members[t.self]; m != nil {
		var used KeyID
		if len(m.meta.keys) > 0 {
			used = m.meta.keys[0]
		}
		m.meta, _ = parseMeta(b)
		if len(m.meta.keys) > 0 && used != m.meta.keys[0] {
			m.keySince = time.Now()
		}
	}
}

func (t *table) conflict(name, other string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m := t.members[name]; m != nil {
		m.conflict = other
	}
}

// wireOf is the version we speak with a peer that is alive, 0 with others.
func (t *table) wireOf(name string) uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.wireLocked(name)
}

func (t *table) wireLocked(name string) uint32 {
	m := t.members[name]
	if m == nil || name == t.self || m.state != Alive {
		return 0
	}
	return t.wire.common(m.meta.wire)
}

// node returns the node of a peer that is alive and compatible.
func (t *table) node(name string) (n memberlist.Node, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.wireLocked(name) == 0 {
		return n, false
	}
	return t.members[name].node, true
}

// speaks says whether messages of this sender are taken: a member that speaks our language, even if it was just taken
// for dead.
func (t *table) speaks(name string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	m := t.members[name]
	return m != nil && name != t.self && t.wire.common(m.meta.wire) != 0
}

func (t *table) peers() (list []string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name := range t.members {
		if t.wireLocked(name) != 0 {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

func (t *table) knows(a netip.Addr) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.addrs[a] > 0
}

// hosts adds the addresses of the members that have not left, with their names.
func (t *table) hosts(to map[netip.Addr]string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, m := range t.members {
		if m.state != Left && name != t.self {
			to[m.addr().Addr().WithZone("")] = name
		}
	}
}

// alive says whether a member that is alive has this address.
func (t *table) alive(a netip.AddrPort) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.members {
		if m.state == Alive && m.addr() == a {
			return true
		}
	}
	return false
}

// failed lists the members to call back: those that went without a word. After a week they are new anyway: no automatic
// block that they know is still alive.
func (t *table) failed() (list []memberlist.Node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.members {
		if m.state != Failed {
			continue
		}
		if t.now().Sub(m.since) > forgetAfter {
			t.removeLocked(m)
			continue
		}
		list = append(list, m.node)
	}
	return list
}

const forgetAfter = 7 * 24 * time.Hour

func (t *table) addClock(name string, s sample) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if m := t.members[name]; m != nil && name != t.self {
		if len(m.clock) >= clockSamples {
			m.clock = m.clock[1:]
		}
		m.clock = append(m.clock[:len(m.clock):len(m.clock)], s)
	}
}

// medianOffset is the median of how far the clocks of the peers that are alive are ahead of ours, and of how many.
func (t *table) medianOffset() (time.Duration, int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var list []time.Duration
	for name, m := range t.members {
		if s, ok := m.bestClock(); ok && m.state == Alive && name != t.self {
			list = append(list, s.offset)
		}
	}
	if len(list) == 0 {
		return 0, 0
	}
	slices.Sort(list)
	n := len(list)
	return (list[(n-1)/2] + list[n/2]) / 2, n
}

func (t *table) snapshot() (list []Member) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, m := range t.members {
		s := Member{
			Name: name, Addr: m.addr().String(), State: m.state, Self: name == t.self, Since: m.since, Version: m.meta.version,
			WireMin: m.meta.wire.Min, WireMax: m.meta.wire.Max, Wire: t.wire.common(m.meta.wire),
			keys: m.meta.keys, keySince: m.keySince,
		}
		for _, k := range m.meta.keys {
			s.Keys = append(s.Keys, k.String())
		}
		if len(s.Keys) > 0 {
			s.Key = s.Keys[0]
		}
		if c, ok := m.bestClock(); ok && m.state == Alive {
			o, r := c.offset.Seconds(), c.rtt.Seconds()
			s.ClockOffset, s.RTT = &o, &r
		}
		if s.State == Alive && s.Wire == 0 {
			s.State = Incompatible
			s.Problem = "it speaks another version of the protocol: upgrade the older of us"
		}
		if m.conflict != "" {
			s.Problem = fmt.Sprintf("%s has the same name: give each node one of its own (cluster.name)", m.conflict)
		}
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b Member) int { return cmp.Compare(a.Name, b.Name) })
	return list
}
