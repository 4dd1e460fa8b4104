// Package maillog turns one line of an MTA's log into at most one Event. It knows nothing of scores or blocks.
//
// It reads the lines of Postfix 2.3 and later, Exim 4 (main and reject log), Sendmail 8, OpenSMTPD 5 and later, Dovecot 1
// to 2.4 (logins), Courier and Cyrus (logins), with the headers of RFC 3164, RFC 5424, rsyslog's ISO 8601 stamps, what
// journalctl prints in its short forms and as JSON, FreeBSD's <facility.level>, TAI64N, and the files that Exim and Dovecot
// write themselves. By default it tells the MTAs apart line by line: by the tag, or by the shape where there is none.
// It does not follow files, ask DNS, or judge: a refused recipient is an event here, and only package verdict says what it
// means.
//
//	p := maillog.New(maillog.Options{Seed: seed})
//	var e maillog.Event
//	if p.Parse([]byte("Mar  2 10:00:00 mx postfix/smtpd[7]: connect from unknown[192.0.2.1]"), time.Now(), &e) {
//		fmt.Println(e.Kind, e.Source) // connect 192.0.2.1
//	}
//
// # What a line may say
//
// Log lines are hostile: HELO, sender, recipient, user and reverse names are written by the attacker. The source
// of an event is read only from the one place of the line where the MTA itself writes it; nothing is ever searched
// for in the rest of the line. What is not recognised is no event. Where the MTA writes a client's text in front of
// the address and the address cannot be told with certainty, there is no event either: an attacker may hide such a
// line, but can never put somebody else's address into one.
//
// Text of the client can at most change the kind of the client's own event, never the source. A line that syslogd may have
// cut is no event where the address stands behind such text: what is last then may be the client's.
//
// # Theirs and ours
//
// Refusals that are our own fault (server configuration error, failed lookups, full disks and mailboxes, a lost
// authentication server) and actions that refuse nothing (reject_warning, hold, filter, discard, ...) give an event of
// kind Other: it has a source, but nothing may be held against it.
//
// Verification callbacks, ours and those of others, are no offence: a callout that fails is Other. What others ask about
// users that we do not have is UnknownRecipient like any other refused recipient; that it was asked in the name of the null
// sender, as bounces and callbacks are, is for the scorer to weigh.
//
// # Lines that belong together
//
// One failed login makes up to four lines (Postfix, Dovecot's auth process and its worker or PAM, its login process) and
// counts once: the others are Other. See logins. A Parser knows only its own lines, so one Parser must read the logs of
// Postfix and Dovecot, and those of Exim: see Switch. OpenSMTPD's and part of Sendmail's verdict lines have no address and need the lines before
// them. "last message repeated N times" is N more of the line before it, "message repeated N times: [ msg]" N events.
//
// # Recipients
//
// A recipient is looked at for two purposes and is never part of an event: whether it is a trap (see Traps), and, with
// Options.Recipients, whether it is the same as another one. That of an accepted message is named by lines that have no
// source (Postfix's local, virtual, lmtp, smtp, pipe, error and discard, Exim's deliveries, Sendmail's to=, Courier's
// started), so a bounded table remembers it by the queue id. Neither costs anything if it is not asked for.
//
// # To add a signature
//
// 1. Put the raw line into testdata/MTA.txt, and into testdata/hostile.txt once for each piece of client text in it, that
// piece replaced by a whole fake log line. 2. Find the function in MTA.go (for Postfix, that of the daemon) and add a case
// that matches from the start of the message to the address with fixed words only. If the client's text stands before the
// address, take the last place if nothing of the client's follows it, or demand that there is one place only; and mind
// lines that were cut. If it is the text of a refusal that is new, add it to classify (reply.go), eximText, sendmailText,
// failedCommand or courierReply. 3. Add the anchored pattern to the second opinion in fuzz_test.go (Postfix) or mta_test.go,
// and to the places of mta_test.go the line with @ for each piece of client text. 4. Run go test -update, and read the diff.
package maillog

import (
	"net/netip"
	"time"
)

// Kind says what a source did.
type Kind uint8

// The kinds of event that come off log lines. Other carries a source and none of the other meanings. Packages that
// store kinds store these numbers: append before NumKinds, never insert.
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
	Trap      // mail to a trap recipient, see Traps
	Recipient // one recipient got a message of the source: see Options.Recipients
	DNSListed // not from lines: what DNS lists say of a source
	NumKinds
)

var kindNames = [NumKinds]string{
	None: "none", Connect: "connect", Disconnect: "disconnect", UnknownRecipient: "unknown_recipient",
	DNSBLReject: "dnsbl_reject", RelayDenied: "relay_denied", AuthFailure: "auth_failure", AuthSuccess: "auth_success",
	NoRDNS: "no_rdns", HeloReject: "helo_reject", SenderReject: "sender_reject", Pregreet: "pregreet",
	ProtocolError: "protocol_error", TooManyErrors: "too_many_errors", RateLimit: "rate_limit", Greylisted: "greylisted",
	SpamReject: "spam_reject", Delivered: "delivered", LostConnection: "lost_connection", Other: "other",
	Trap: "trap", Recipient: "recipient",
	DNSListed: "dns_listed",
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
	MTA    MTA        // whose line it is
	// Submission says that the event came in on a submission service (465, 587), where users log in.
	Submission bool
	// Automatic says that a recipient was refused to a sender whose mail answers other mail: a bounce, or the question
	// whether a sender exists. What is not so marked may be one too: Sendmail and OpenSMTPD do not always name the sender.
	Automatic bool
	// Temporary says that Postfix refused it for now (4xx) and that it is to be tried again.
	Temporary bool
	// Midway says that another recipient of the same message was accepted before. Only Postfix tells.
	Midway bool
	// Undone says that a Delivered of the source was no delivery: the message was refused or thrown away after the line that told of
	// it. Sendmail writes that line before its milters have seen the text, Postfix before a filter behind its queue has, Exim also of
	// what an access list of its own throws away.
	Undone bool
	// User is a 64-bit seeded hash of whom the event is about, 0 if the line does not say: the user name of a login, the
	// recipient of a Recipient, an UnknownRecipient or (Postfix, Exim) a RelayDenied, the domain of the sender of a Delivered. The lower half
	// of a RelayDenied's is the domain of the recipient. The name itself is the attacker's text and goes no further than this.
	User uint64
}

// copy makes e a copy of o, field by field: o was written so a moment ago, and a processor waits for what it reads in larger
// pieces than it wrote.
func (e *Event) copy(o *Event) {
	e.Kind, e.Source, e.Time, e.Count, e.MTA, e.User = o.Kind, o.Source, o.Time, o.Count, o.MTA, o.User
	e.Submission, e.Automatic, e.Temporary, e.Midway, e.Undone = o.Submission, o.Automatic, o.Temporary, o.Midway, o.Undone
}
