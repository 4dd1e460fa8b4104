// Package maillog turns one line of an MTA's log into at most one Event. It knows nothing of scores or blocks.
//
// Log lines are hostile: HELO, sender, recipient, user and reverse names are written by the attacker. The source
// of an event is read only from the one place of the line where the MTA itself writes it; nothing is ever searched
// for in the rest of the line. What is not recognised is no event.
package maillog

import (
	"net/netip"
	"time"
)

// Kind says what a source did.
type Kind uint8

// The kinds of event that come off log lines. Other carries a source and none of the other meanings.
const (
	None Kind = iota
	Connect
	Disconnect
	UnknownRecipient
	DNSBLReject
	RelayDenied
	AuthFailure
	AuthSuccess
	NoRDNS
	HeloReject
	SenderReject
	Pregreet
	ProtocolError
	TooManyErrors
	RateLimit
	Greylisted
	SpamReject
	Delivered
	LostConnection
	Other
	NumKinds
)

var kindNames = [NumKinds]string{
	None: "none", Connect: "connect", Disconnect: "disconnect", UnknownRecipient: "unknown_recipient",
	DNSBLReject: "dnsbl_reject", RelayDenied: "relay_denied", AuthFailure: "auth_failure", AuthSuccess: "auth_success",
	NoRDNS: "no_rdns", HeloReject: "helo_reject", SenderReject: "sender_reject", Pregreet: "pregreet",
	ProtocolError: "protocol_error", TooManyErrors: "too_many_errors", RateLimit: "rate_limit", Greylisted: "greylisted",
	SpamReject: "spam_reject", Delivered: "delivered", LostConnection: "lost_connection", Other: "other",
}

// String returns the kind's name as it stands in config keys and JSON.
func (k Kind) String() string {
	if k < NumKinds {
		return kindNames[k]
	}
	return "unknown"
}

// ParseKind is the reverse of String.
func ParseKind(s string) (Kind, bool) {
	for k, n := range kindNames {
		if n == s {
			return Kind(k), true
		}
	}
	return None, false
}

// An Event is one thing that one source did.
type Event struct {
	Kind   Kind
	Source netip.Addr // canonical: IPv4-mapped addresses unmapped, no zone
	Time   time.Time  // when the MTA wrote the line
	Count  int        // how many events the line stands for, at least 1
	// Submission says that the event came in on a submission service (465, 587), where users log in.
	Submission bool
	// User is a 64-bit seeded hash of the user name of a login, 0 if the line carries none. The name itself is the
	// attacker's text and goes no further than this.
	User uint64
}
