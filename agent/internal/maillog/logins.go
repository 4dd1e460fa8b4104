package maillog

import (
	"bytes"
	"hash/maphash"
	"net/netip"
	"slices"
)

// One failed login may be told up to four times: by Dovecot's auth process, by its worker, by PAM, and by the server that
// the client talked to (Postfix, Exim, a login process of Dovecot). Each of these reporters writes at most one line per
// failure, or one with the number of failures of a session, and not always the same user name. So the number of failures
// of a source is the largest number that any of them has reported: a line counts what its reporter is ahead of the
// others, and what it counts the others may still report for nothing. The order of the lines does not matter.
//
// Different servers never report the same login, so together they are one reporter. One reporter may ask several
// databases about one login and write a line for each: the same user in another database within a second does not
// count.
//
// The bad cases: a source that fails at two servers at once, of which only one asks Dovecot, may get away with a few;
// and a failure may count twice if more than loginSources others fail between its lines, or if its lines are read
// further apart than loginWindow. The same holds for lines that reach two Parsers. What is known here is stored over a
// restart, see Pending.
type reporter uint8

const (
	byServer reporter = iota
	byAuth
	byWorker
	byPAM
	numReporters
)

const (
	loginSources = 4096
	loginWindow  = 200 // seconds: a session that fails to log in is closed after 180
)

// logins knows the sources that failed of late: at least the last loginSources, at most twice as many. They are not kept in
// places by their hash alone: a few hundred sources are enough to fill one such place and push each other out.
type logins struct {
	seed       maphash.Seed
	young, old generation // made at the first failure; when young is full it becomes old
}

// A generation is up to loginSources sources. It is what a map would be, but what it has of a source is changed in place: half
// of a failed login's time went into copying a login out of a map and back.
type generation struct {
	index []uint16 // by hash, where in list + 1; 0 is free, and at least half of it is
	list  []sourceLogin
}

type sourceLogin struct {
	addr [16]byte
	login
}

// A login is what one source did of late.
type login struct {
	at   int64                       // the last failure that counted
	owed [numReporters]uint16        // failures that have counted and that this reporter has not told yet
	said [numReporters - 1]saidLogin // by all but the server
}

// saidLogin is the last line of a reporter that asks databases.
type saidLogin struct {
	user uint64 // 0: none
	at   int64
	key  uint32 // which database it was about
}

// countLogin reduces a failure to what has not been counted. If that is nothing the line is Other.
func (p *Parser) countLogin(h *header, e *Event) {
	n := p.logins.count(e.Source, h, e.User, e.Count, e.Time.Unix())
	if n == 0 {
		e.Kind, e.Count = Other, 1
		return
	}
	e.Count = n
}

func (t *logins) count(a netip.Addr, h *header, user uint64, n int, now int64) int {
	l := t.of(a.As16())
	if d := now - l.at; d > loginWindow || d < -loginWindow {
		*l = login{at: now}
	}
	return l.count(h, user, n, now)
}

func (l *login) count(h *header, user uint64, n int, now int64) int {
	if h.by != byServer && user != 0 {
		s := &l.said[h.by-byAuth]
		if user == s.user && h.key != s.key && now-s.at <= 1 && s.at-now <= 1 {
			return 0
		}
		*s = saidLogin{user, now, h.key}
	}
	known := min(n, int(l.owed[h.by]))
	l.owed[h.by] -= uint16(known)
	if n -= known; n == 0 {
		return 0
	}
	l.at = now
	for r := range l.owed {
		if reporter(r) != h.by {
			l.owed[r] = uint16(min(int(l.owed[r])+n, 1<<16-1))
		}
	}
	return n
}

// of is where the login of a source is kept, among the young, until the next call.
func (t *logins) of(addr [16]byte) *login {
	t.make()
	h := maphash.Bytes(t.seed, addr[:])
	i, at := t.young.find(h, addr)
	if at >= 0 {
		return &t.young.list[at].login
	}
	var l login
	if _, at := t.old.find(h, addr); at >= 0 {
		l = t.old.list[at].login
	}
	if len(t.young.list) >= loginSources {
		t.young, t.old = t.old, t.young
		t.young.list = t.young.list[:0]
		clear(t.young.index)
		i, _ = t.young.find(h, addr)
	}
	return t.young.add(i, addr, l)
}

func (t *logins) make() {
	if t.young.index == nil {
		t.seed = maphash.MakeSeed()
		t.young.index, t.old.index = make([]uint16, 2*loginSources), make([]uint16, 2*loginSources)
	}
}

// find returns the place in the index of a source, and that in the list, or -1.
func (g *generation) find(h uint64, addr [16]byte) (i, at int) {
	for i = int(h % (2 * loginSources)); g.index[i] != 0; i = (i + 1) % (2 * loginSources) {
		if at = int(g.index[i]) - 1; g.list[at].addr == addr {
			return i, at
		}
	}
	return i, -1
}

// add puts a source that is not there at place i of the index.
func (g *generation) add(i int, addr [16]byte, l login) *login {
	g.list = append(g.list, sourceLogin{addr, l})
	g.index[i] = uint16(len(g.list))
	return &g.list[len(g.list)-1].login
}

// restore puts a source among the old or the young ones, as it was stored.
func (t *logins) restore(old bool, addr [16]byte, l login) {
	t.make()
	g := &t.young
	if old {
		g = &t.old
	}
	if i, at := g.find(maphash.Bytes(t.seed, addr[:]), addr); at >= 0 {
		g.list[at].login = l
	} else {
		g.add(i, addr, l)
	}
}

// each calls f for the sources of old, or else for those of young that failed within the window, in the order of their
// addresses, so that the same table gives the same bytes.
func (t *logins) each(old bool, f func([16]byte, *login)) {
	newest := int64(0)
	for i := range t.young.list {
		newest = max(newest, t.young.list[i].at)
	}
	g := &t.young
	if old {
		g = &t.old
	}
	list := make([]*sourceLogin, 0, len(g.list))
	for i := range g.list {
		l := &g.list[i]
		if newest-l.at > loginWindow {
			continue
		}
		if old {
			if _, at := t.young.find(maphash.Bytes(t.seed, l.addr[:]), l.addr); at >= 0 {
				continue
			}
		}
		list = append(list, l)
	}
	slices.SortFunc(list, func(a, b *sourceLogin) int { return bytes.Compare(a.addr[:], b.addr[:]) })
	for _, l := range list {
		f(l.addr, &l.login)
	}
}
