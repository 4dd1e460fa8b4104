package maillog

import (
	"encoding/binary"
	"sort"
)

// What stands behind the entries in the bytes of Pending, little endian, each list after its length (4):
//
//	failed logins     of the older sources, then in a list of their own of the younger ones: address (16), last counted
//	                  (8), owed (2 per reporter), and per reporter but the server user (8), last told (8), database (4)
//	refusals of Exim  sum (8), seconds since 1970 (8)
//	logs              length of the name (2), name, kind (1), submission (1), reporter (1), key (4), user (8), address (16)
const (
	loginBytes  = 16 + 8 + 2*int(numReporters) + (int(numReporters)-1)*(8+8+4)
	twiceBytes  = 16
	streamBytes = 3 + 4 + 8 + 16
	maxName     = 4096
)

// state is these lists, taken apart.
type state struct {
	logins  logins
	twice   twice
	streams map[string]stream
}

func (p *Parser) appendState(b []byte) []byte {
	le := binary.LittleEndian
	var start, n int
	for _, old := range []bool{true, false} {
		start, n = len(b), 0
		b = le.AppendUint32(b, 0)
		p.logins.each(old, func(addr [16]byte, l *login) {
			b = le.AppendUint64(append(b, addr[:]...), uint64(l.at))
			for _, o := range l.owed {
				b = le.AppendUint16(b, o)
			}
			for _, s := range l.said {
				b = le.AppendUint32(le.AppendUint64(le.AppendUint64(b, s.user), uint64(s.at)), s.key)
			}
			n++
		})
		le.PutUint32(b[start:], uint32(n))
	}

	start, n = len(b), 0
	b = le.AppendUint32(b, 0)
	for i := range p.twice.sum {
		if j := (p.twice.next + i) % len(p.twice.sum); p.twice.sum[j] != 0 { // the oldest first
			b = le.AppendUint64(le.AppendUint64(b, p.twice.sum[j]), uint64(p.twice.at[j]))
			n++
		}
	}
	le.PutUint32(b[start:], uint32(n))

	start, n = len(b), 0
	b = le.AppendUint32(b, 0)
	names := make([]string, 0, len(p.streams))
	for name := range p.streams {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		s := p.streams[name]
		if s.last.Kind == None || len(name) > maxName {
			continue
		}
		b = append(le.AppendUint16(b, uint16(len(name))), name...)
		sub := byte(0)
		if s.last.Submission {
			sub = 1
		}
		b = append(b, byte(s.last.Kind), sub, byte(s.by))
		b = le.AppendUint64(le.AppendUint32(b, s.key), s.last.User)
		a := s.last.Source.As16()
		b = append(b, a[:]...)
		n++
	}
	le.PutUint32(b[start:], uint32(n))
	return b
}

// readState is false for what appendState cannot have made.
func readState(b []byte) (s state, ok bool) {
	le := binary.LittleEndian
	list := func(most, size int) (int, bool) {
		if len(b) < 4 {
			return 0, false
		}
		n := le.Uint32(b)
		b = b[4:]
		return int(n), int64(n) <= int64(most) && int64(n)*int64(size) <= int64(len(b))
	}
	var n int
	for old := true; ; old = false {
		if n, ok = list(loginSources, loginBytes); !ok {
			return s, false
		}
		for ; n > 0; n, b = n-1, b[loginBytes:] {
			addr, l, c := [16]byte(b), login{at: int64(le.Uint64(b[16:]))}, b[24:]
			for i := range l.owed {
				l.owed[i], c = le.Uint16(c), c[2:]
			}
			for i := range l.said {
				l.said[i], c = saidLogin{le.Uint64(c), int64(le.Uint64(c[8:])), le.Uint32(c[16:])}, c[20:]
				if l.said[i].at < 0 {
					return s, false
				}
			}
			if addr == [16]byte{} || l.at < 0 {
				return s, false
			}
			s.logins.restore(old, addr, l)
		}
		if !old {
			break
		}
	}
	if n, ok = list(len(s.twice.sum), twiceBytes); !ok {
		return s, false
	}
	for i := 0; i < n; i, b = i+1, b[twiceBytes:] {
		s.twice.sum[i], s.twice.at[i] = le.Uint64(b), int64(le.Uint64(b[8:]))
		if s.twice.sum[i] == 0 || s.twice.at[i] < 0 {
			return s, false
		}
	}
	s.twice.next = n % len(s.twice.sum)
	if n, ok = list(maxStreams, 2+streamBytes); !ok {
		return s, false
	}
	s.streams = map[string]stream{}
	for ; n > 0; n-- {
		if len(b) < 2 || len(b) < 2+int(le.Uint16(b))+streamBytes || le.Uint16(b) > maxName {
			return s, false
		}
		name := string(b[2 : 2+le.Uint16(b)])
		b = b[2+len(name):]
		st := stream{by: reporter(b[2]), key: le.Uint32(b[3:])}
		st.last = Event{Kind: Kind(b[0]), Submission: b[1] == 1, User: le.Uint64(b[7:]), Source: (&waiting{addr: [16]byte(b[15:])}).source(), Count: 1}
		if st.last.Kind == None || st.last.Kind >= NumKinds || b[1] > 1 || st.by >= numReporters || st.last.Source.IsUnspecified() {
			return s, false
		}
		s.streams[name] = st
		b = b[streamBytes:]
	}
	return s, len(b) == 0
}

func (p *Parser) restoreState(s *state) {
	p.logins = s.logins
	p.twice = s.twice
	clear(p.streams)
	p.from = &p.own
	for name, st := range s.streams {
		to := p.addStream(name)
		id := to.id
		*to = st
		to.id = id
	}
}
