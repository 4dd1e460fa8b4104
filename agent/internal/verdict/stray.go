package verdict

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"

	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// The rule of the stray domain (see the package comment).
const (
	strays     = 32    // domains remembered
	strayKnown = 3     // known senders, at least, that we do not relay to it for
	strayLast  = 86400 // seconds after the last of them that it holds
)

// A stray is a domain that known senders want to reach through us and that we do not relay to.
type stray struct {
	domain uint32 // lower half of maillog.Event.User; 0: free
	since  uint32
	last   uint32 // refusal of a known sender
	told   bool
	seen   uint64 // a bit for each of them: two may share one
}

// astray takes in that a source was refused to relay, and says whether the fault is with the domain: mail for it is to come to us
// as the world sees it. Nothing can be relayed all the same, so who feigns that gains nothing.
func (s *Scorer) astray(h uint64, r *record, e *maillog.Event, at, now uint32) bool {
	domain := uint32(e.User)
	if domain == 0 || at+strayLast <= now {
		return false
	}
	var x *stray
	least := &s.strays[0]
	for i := range s.strays {
		y := &s.strays[i]
		if y.domain == domain {
			x = y
			break
		}
		if y.last < least.last || y.last > now+ahead {
			least = y
		}
	}
	known := r.known(maillog.RelayDenied)
	if x != nil && (x.last+strayLast <= now || x.last > now+ahead) { // over, or the wall clock was wrong
		least, x = x, nil
	}
	if x == nil {
		if !known {
			return false
		}
		*least = stray{domain: domain, since: at}
		x = least
	}
	if known {
		x.seen |= 1 << (h >> 58)
		x.last = max(x.last, at)
		s.strayed = true
	}
	if bits.OnesCount64(x.seen) < strayKnown {
		return false
	}
	if !x.told {
		x.told = true
		s.tell(x.notice())
	}
	return true
}

func (x *stray) notice() Notice {
	return Notice{
		Key:   fmt.Sprintf("stray %08x", x.domain),
		Since: when(x.since),
		Text: fmt.Sprintf("since %s, %d or more known senders were refused because this host does not relay to one and the same domain (its name is in the log, look for relay): either it is to be taken here and is not configured, or it has left and its MX record still names this host. Such refusals count against nobody",
			when(x.since).Format("2006-01-02 15:04:05 MST"), strayKnown),
	}
}

func (s *Scorer) strayNotices(list []Notice, now uint32) []Notice {
	for i := range s.strays {
		if x := &s.strays[i]; bits.OnesCount64(x.seen) >= strayKnown && x.last+strayLast > now {
			list = append(list, x.notice())
		}
	}
	return list
}

// Stored strays: version (1), then per domain domain, since, last (4 each) and seen (8), little endian.
const (
	strayVersion = 1
	strayStored  = 3*4 + 8
)

func (s *Scorer) changedStrays(fn func(key, val []byte)) {
	if !s.strayed {
		return
	}
	s.strayed = false
	b, le := []byte{strayVersion}, binary.LittleEndian
	for i := range s.strays {
		if x := &s.strays[i]; x.domain != 0 {
			b = le.AppendUint32(le.AppendUint32(le.AppendUint32(b, x.domain), x.since), x.last)
			b = le.AppendUint64(b, x.seen)
		}
	}
	fn([]byte{special, 's'}, b)
}

func (s *Scorer) loadStrays(b []byte) error {
	if len(b) == 0 || b[0] != strayVersion || (len(b)-1)%strayStored != 0 || len(b)/strayStored > strays {
		return fmt.Errorf("%w: domains that we do not relay to", errRecord)
	}
	var list [strays]stray
	for i, b := 0, b[1:]; len(b) > 0; i, b = i+1, b[strayStored:] {
		le := binary.LittleEndian
		x := stray{domain: le.Uint32(b), since: le.Uint32(b[4:]), last: le.Uint32(b[8:]), seen: le.Uint64(b[12:])}
		if x.domain == 0 || x.since == 0 || x.last < x.since || x.last > math.MaxUint32-1<<19 {
			return fmt.Errorf("%w: a domain that cannot be", errRecord)
		}
		x.told = bits.OnesCount64(x.seen) >= strayKnown
		list[i] = x
	}
	s.strays = list
	return nil
}
