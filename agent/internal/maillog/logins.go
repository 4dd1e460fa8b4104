package maillog

import "net/netip"

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
// and if the table is full (4096 sources within loginWindow; an attacker cannot choose the places) a failure may count
// twice. The same holds for lines that reach two Parsers. What is known here is stored over a restart, see Pending.
type reporter uint8

const (
	byServer reporter = iota
	byAuth
	byWorker
	byPAM
	numReporters
)

const (
	loginWays   = 4
	loginSets   = 1024
	loginWindow = 200 // seconds: a session that fails to log in is closed after 180
)

type logins struct {
	set []login // allocated at the first failure
}

// A login is what one source did of late. 56 bytes.
type login struct {
	addr [16]byte
	at   int64                // the last failure that counted
	user uint64               // of the last line of byAuth or byWorker
	said int64                // when that was
	key  uint32               // which database it was about
	owed [numReporters]uint16 // failures that have counted and that this reporter has not told yet
}

// countLogin reduces a failure to what has not been counted. If that is nothing the line is Other.
func (p *Parser) countLogin(h *header, e *Event) {
	n := p.logins.count(p.seed, e.Source, h, e.User, e.Count, e.Time.Unix())
	if n == 0 {
		e.Kind, e.Count = Other, 1
		return
	}
	e.Count = n
}

func (t *logins) count(seed uint64, a netip.Addr, h *header, user uint64, n int, now int64) int {
	if t.set == nil {
		t.set = make([]login, loginSets*loginWays)
	}
	addr := a.As16()
	i := int(hash(seed, addr[:], false)) & (loginSets - 1) * loginWays
	set := t.set[i : i+loginWays]
	var l *login
	oldest := &set[0]
	for i := range set {
		if set[i].addr == addr {
			l = &set[i]
			break
		}
		if set[i].at < oldest.at {
			oldest = &set[i]
		}
	}
	if l == nil {
		*oldest = login{addr: addr, at: now}
		l = oldest
	} else if d := now - l.at; d > loginWindow || d < -loginWindow {
		*l = login{addr: addr, at: now}
	}
	known := min(n, int(l.owed[h.by]))
	l.owed[h.by] -= uint16(known)
	if n -= known; n == 0 {
		return 0
	}
	if h.by != byServer && user != 0 {
		if user == l.user && h.key != l.key && now-l.said <= 1 && l.said-now <= 1 {
			return 0
		}
		l.user, l.key, l.said = user, h.key, now
	}
	l.at = now
	for r := range l.owed {
		if reporter(r) != h.by {
			l.owed[r] = uint16(min(int(l.owed[r])+n, 1<<16-1))
		}
	}
	return n
}
