package block

import (
	"fmt"
	"strings"
)

// Kind says what an entry states about its prefix.
type Kind uint8

const (
	// Block: drop packets from the prefix.
	Block Kind = iota + 1
	// Allow: never drop packets from the prefix (a manual block that is more specific wins).
	Allow
	// Clear: cancels every older block for the addresses it covers, and automatic ones made during its hold.
	Clear
	// Disallow: cancels the allows of exactly its prefix with the same or an older stamp.
	Disallow
	// OriginClear: nothing that the origin Target said up to the stamp counts any more. It has no prefix.
	OriginClear
)

var kindNames = [...]string{Block: "block", Allow: "allow", Clear: "clear", Disallow: "disallow", OriginClear: "origin_clear"}

func (k Kind) String() string { return name(kindNames[:], uint8(k)) }

// MarshalText and UnmarshalText keep the words of the JSON API and of this package the same.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText accepts the names that String prints.
func (k *Kind) UnmarshalText(b []byte) error { return parseName((*uint8)(k), kindNames[:], "kind", b) }

// Cause is the closed list of why a block was made: the largest contributor to the verdict.
type Cause uint8

// The causes. NoCause belongs to entries that are no blocks.
const (
	NoCause Cause = iota
	Dictionary
	DNSBL
	RelayProbe
	AuthBrute
	Trap
	Complaint
	ProtocolAbuse
	Flood
	Feed
	Manual
)

var causeNames = [...]string{
	NoCause: "none", Dictionary: "dictionary", DNSBL: "dnsbl", RelayProbe: "relay_probe", AuthBrute: "auth_brute",
	Trap: "trap", Complaint: "complaint", ProtocolAbuse: "protocol_abuse", Flood: "flood", Feed: "feed", Manual: "manual",
}

// Causes are all of them.
func Causes() []Cause {
	list := make([]Cause, 0, Manual)
	for c := Dictionary; c <= Manual; c++ {
		list = append(list, c)
	}
	return list
}

func (c Cause) String() string { return name(causeNames[:], uint8(c)) }

// MarshalText writes the cause's name.
func (c Cause) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText accepts the names that String prints.
func (c *Cause) UnmarshalText(b []byte) error {
	return parseName((*uint8)(c), causeNames[:], "cause", b)
}

// Scope returns which ports a block of this cause closes. Home users stand on lists and share addresses with
// infected hosts, so evidence from the MX port never closes the submission ports to them.
func (c Cause) Scope() Scope {
	switch c {
	case AuthBrute, Manual:
		return ScopeAll
	default:
		return ScopeMX
	}
}

// Scope is the set of protected ports a block closes, as a bit set.
type Scope uint8

const (
	// ScopeNone closes nothing; in the kernel it makes a hole in a wider block.
	ScopeNone Scope = 0
	// ScopeMX closes the ports of the mx group (25).
	ScopeMX Scope = 1
	// ScopeSubmission closes the submission group (465, 587). No block has it alone; allows by name may keep just these open.
	ScopeSubmission Scope = 2
	// ScopeAll closes the mx and the submission groups.
	ScopeAll Scope = 3
)

var scopeNames = [...]string{ScopeNone: "none", ScopeMX: "mx", ScopeSubmission: "submission", ScopeAll: "all"}

func (s Scope) String() string { return name(scopeNames[:], uint8(s)) }

// MarshalText writes the scope's name.
func (s Scope) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText accepts the names that String prints.
func (s *Scope) UnmarshalText(b []byte) error {
	return parseName((*uint8)(s), scopeNames[:], "scope", b)
}

func name(names []string, i uint8) string {
	if int(i) < len(names) && names[i] != "" {
		return names[i]
	}
	return fmt.Sprintf("unknown(%d)", i)
}

func parseName(to *uint8, names []string, what string, b []byte) error {
	for i, n := range names {
		if n != "" && n == string(b) {
			*to = uint8(i)
			return nil
		}
	}
	known := make([]string, 0, len(names))
	for _, n := range names {
		if n != "" {
			known = append(known, n)
		}
	}
	return fmt.Errorf("unknown %s %q; one of %s", what, b, strings.Join(known, ", "))
}
