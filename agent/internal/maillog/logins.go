package maillog

import (
	"bytes"
	"net/netip"
	"sort"
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

// logins knows the sources that failed of late: at least the last loginSources, at most twice as many. They are in maps,
// not in places by their hash: a few hundred sources are enough to fill one such place and push each other out.
type logins struct {
	young, old map[[16]byte]login // made at the first failure; when young is full it becomes old
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
	addr := a.As16()
	l := t.get(addr)
	if d := now - l.at; d > loginWindow || d < -loginWindow {
		l = login{at: now}
	}
	n = l.count(h, user, n, now)
	t.put(addr, l)
	return n
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

// get returns the zero login for a source that is not known.
func (t *logins) get(addr [16]byte) login {
	if l, ok := t.young[addr]; ok {
		return l
	}
	return t.old[addr]
}

func (t *logins) put(addr [16]byte, l login) {
	t.make()
	if len(t.young) >= loginSources {
		if _, ok := t.young[addr]; !ok {
			t.young, t.old = t.old, t.young
			clear(t.young)
		}
	}
	t.young[addr] = l
}

func (t *logins) make() {
	if t.young == nil {
		t.young, t.old = make(map[[16]byte]login, loginSources), make(map[[16]byte]login, loginSources)
	}
}

// each calls f for the sources of old, or else for those of young that failed within the window, in the order of their
// addresses, so that the same table gives the same bytes.
func (t *logins) each(old bool, f func([16]byte, *login)) {
	newest := int64(0)
	for _, l := range t.young {
		newest = max(newest, l.at)
	}
	m := t.young
	if old {
		m = t.old
	}
	addrs := make([][16]byte, 0, len(m))
	for addr := range m {
		addrs = append(addrs, addr)
	}
	sort.Slice(addrs, func(i, j int) bool { return bytes.Compare(addrs[i][:], addrs[j][:]) < 0 })
	for _, addr := range addrs {
		l := m[addr]
		if _, again := t.young[addr]; newest-l.at <= loginWindow && !(old && again) {
			f(addr, &l)
		}
	}
}
