package maillog

import (
	"bytes"
	"math/bits"
)

// classify says what a refusal was about: REPLY of "reject: CMD from C: REPLY; from=<S> ...". content tells that the
// message itself was refused, not its envelope. The source is known by then, so the client's own text can at worst hide
// one of its offences, and not the ones that pay: a dictionary needs real-looking recipients.
func classify(r []byte, content bool) Kind {
	rc, text := splitReply(r)
	text, ok := skipEcho(text)
	if !ok {
		return unclear(rc, text)
	}
	if has(text, "Recipient address rejected: User unknown") {
		// The commonest of an attack. 550 5.1.1, or what unknown_*_reject_code or soft_bounce made of it.
		return UnknownRecipient
	}
	if i := indexFrom(text); i >= 0 {
		text = text[:i]
	}
	text = text[:min(len(text), 512)] // policy text may be long; what it is about stands in front
	if !rc.hard && (within(text, "greylist") || within(text, "graylist") || within(text, "grey-list")) {
		return Greylisted
	}
	if ours(text) {
		return Other
	}
	switch {
	case has(text, "Relay access denied"):
		return RelayDenied
	case has(text, "Recipient address rejected: "):
		return recipient(text[len("Recipient address rejected: "):], rc)
	case has(text, "Sender address rejected: "):
		return SenderReject
	case has(text, "Helo command rejected: "):
		return HeloReject
	case has(text, "Client host rejected: cannot find your "):
		return NoRDNS
	case has(text, "Service unavailable; "):
		if bytes.Contains(text, []byte("] blocked using ")) {
			return listing(text)
		}
		return Other
	case has(text, "Data command rejected: Improper use of SMTP command pipelining"),
		has(text, "bare <LF> received"), has(text, "Protocol error"):
		return ProtocolError
	}
	if i := bytes.Index(text, []byte("Error: too m")); i >= 0 && bytes.Contains(text[i:], []byte(" from ")) {
		return RateLimit // "Error: too many recipients" without "from" is one message with a long list
	}
	if rc.subject == '3' {
		return Other
	}
	if content && rc.hard && spammy(text) {
		return SpamReject
	}
	return Other
}

// unclear says what a refusal was about whose echo has no clear end: a client that writes "<" into a local part must
// not go unseen. The code is the MTA's own; the words may be the client's, which at worst names its offence wrongly.
func unclear(rc replyCode, text []byte) Kind {
	switch {
	case rc.hard && rc.subject == '1' && rc.detail == '1':
		return UnknownRecipient // RFC 3463: X.1.1 bad destination mailbox address
	case rc.hard && rc.subject == '7' && bytes.Contains(text, []byte(">: Relay access denied; from=<")):
		return RelayDenied
	}
	return Other
}

// recipient tells a mailbox that does not exist from one that may not or cannot take mail now.
func recipient(why []byte, rc replyCode) Kind {
	switch {
	case has(why, "undeliverable address: "), nobody(why, rc.hard):
		return UnknownRecipient
	case has(why, "Relay access denied"):
		return RelayDenied
	case rc.hard && rc.subject == '1' && rc.detail == '1':
		return UnknownRecipient // RFC 3463: X.1.1 bad destination mailbox address, in whatever words
	}
	return Other
}

// nobody says that the words of a policy or of an administrator are about a recipient that there is not. The first three are
// believed with a temporary code too.
func nobody(text []byte, hard bool) bool {
	for i, words := range [...]string{
		"user unknown", "unknown user", "no such user",
		"recipient address unknown", "unknown recipient", "recipient unknown", "invalid recipient", "no such recipient", "no such address",
		"no such mailbox", "no mailbox here", "mailbox not found", "user not found", "mailbox does not exist", "user does not exist",
		"user doesn't exist", "recipient does not exist", "account does not exist",
	} {
		if i < 3 || hard {
			if within(text, words) {
				return true
			}
		}
	}
	return false
}

// ours says that the reason lies with us or with the mailbox, not with the client. These texts come with several codes.
func ours(text []byte) bool {
	if n, ok := cut(text, "Recipient address rejected: "); ok {
		text = n
	} else if i := bytes.Index(text, []byte(" rejected: ")); i >= 0 && i < 32 {
		text = text[i+len(" rejected: "):]
	}
	if len(text) == 0 {
		return true
	}
	switch text[0] {
	case 'S':
		if has(text, "Server configuration error") || has(text, "Server local ") || has(text, "Server error") {
			return true
		}
	case 'T':
		if has(text, "Temporary lookup failure") || has(text, "Try again later") || has(text, "Temporary ") {
			return true
		}
	case 'I':
		if has(text, "Insufficient system ") {
			return true
		}
	case 'u':
		if has(text, "unverified address: ") {
			return true // our probe has not been answered yet
		}
	}
	return within(text, "mailbox full") || within(text, "mailbox is full") || within(text, "quota")
}

// oursAuth says that a login failed because our authentication server did not work.
func oursAuth(reason []byte) bool {
	return has(reason, "Connection lost to authentication server") || within(reason, "temporary") ||
		within(reason, "internal error") || has(reason, "generic failure")
}

// spammy says that the words of a filter are about spam or malware. "spamhaus" and the like are names of lists.
func spammy(text []byte) bool {
	text = text[:min(len(text), 512)]
	if within(text, "virus") || within(text, "malware") || within(text, "phish") || within(text, "spamassassin") ||
		within(text, "score=") || within(text, "hits=") {
		return true
	}
	for i := 0; ; {
		j := index(text[i:], "spam")
		if j < 0 {
			return false
		}
		if i += j + 4; i == len(text) || !isAlnum(text[i]) || text[i]|0x20 == 'm' {
			return true
		}
	}
}

// A replyCode is what matters of "NNN D.S.N".
type replyCode struct {
	hard            bool // 5xx, or 5.x.x without a three-digit code
	subject, detail byte // S and N of the enhanced code if they are one digit
}

// splitReply takes "NNN [D.S.N ]text" or "[D.S.N ]text" apart.
func splitReply(b []byte) (rc replyCode, text []byte) {
	if len(b) > 10 && isDigit(b[0]) && isDigit(b[1]) && isDigit(b[2]) && b[3] == ' ' && isDigit(b[4]) && b[5] == '.' &&
		isDigit(b[6]) && b[7] == '.' && isDigit(b[8]) && b[9] == ' ' { // nearly always
		return replyCode{b[0] == '5', b[6], b[8]}, b[10:]
	}
	coded := false
	if len(b) > 4 && isDigit(b[0]) && isDigit(b[1]) && isDigit(b[2]) && b[3] == ' ' {
		rc.hard, coded = b[0] == '5', true
		b = b[4:]
	}
	// D.S.N with up to three digits each
	var n, dots, start int
	var part [3]byte
	for n < len(b) && n < 10 && (isDigit(b[n]) || b[n] == '.') {
		if b[n] == '.' {
			if dots++; dots > 2 {
				return rc, b
			}
			start = n + 1
		} else if part[dots] = b[n]; n != start {
			part[dots] = 0
		}
		n++
	}
	if dots != 2 || n == len(b) || b[n] != ' ' {
		return rc, b
	}
	if !coded {
		rc.hard = part[0] == '5'
	}
	rc.subject, rc.detail = part[1], part[2]
	return rc, b[n+1:]
}

// skipEcho skips "<what the client sent>: " at the start of b. The echo may hold quoted strings with any byte, angle
// brackets inside quotes or nested, and ">: " inside quotes. Without an end it returns b and false.
func skipEcho(b []byte) ([]byte, bool) {
	if len(b) == 0 || b[0] != '<' {
		c, _ := cut(b, ": ") // what put the line on a web page took the echo for a tag
		return c, true
	}
	if n := echo(b); n > 0 {
		return b[n:], true
	}
	depth, quoted := 0, false
	for i := 0; i < len(b); i++ {
		c := b[i]
		if class[c]&inEcho == 0 {
			continue
		}
		switch {
		case c == '\\' && quoted:
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '<':
			depth++
		case c == '>':
			if depth--; depth <= 0 && i+2 < len(b) && b[i+1] == ':' && b[i+2] == ' ' {
				return b[i+3:], true
			}
		}
	}
	return b, false
}

// within says whether lower-case word stands anywhere in b, in any case.
func within(b []byte, word string) bool { return index(b, word) >= 0 }

func index(b []byte, word string) int {
	i := 0
	for first := uint64(word[0]) * ones; i+8 <= len(b); i += 8 {
		z := zeros((load8(b, i) | ' '*ones) ^ first)
		if z == 0 {
			continue
		}
		if i += bits.TrailingZeros64(z) / 8; i+len(word) > len(b) {
			return -1
		}
		if begins(b[i:], word) {
			return i
		}
		i -= 7
	}
	for ; i+len(word) <= len(b); i++ {
		if begins(b[i:], word) {
			return i
		}
	}
	return -1
}

func begins(b []byte, word string) bool {
	if b[0]|0x20 != word[0] {
		return false
	}
	for j := 1; j < len(word); j++ {
		if b[j] != word[j] && !(isUpper(b[j]) && b[j]|0x20 == word[j]) {
			return false
		}
	}
	return true
}
