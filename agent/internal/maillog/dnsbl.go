package maillog

import "bytes"

// listing is the kind of a refusal for what a DNS list says of the client. A list that is in error (asked through a
// public resolver, too many queries, a wrong zone) answers like one that lists everybody, and only the list's own text
// in the refusal shows it: that is our fault, not the client's. text is the refusal, of which the list wrote the end.
func listing(text []byte) Kind {
	if i := bytes.Index(text, []byte("] blocked using ")); i >= 0 {
		text = text[i:] // what stands before may be the client's: a HELO or sender on a list of names
	}
	if i := indexFrom(text); i >= 0 {
		text = text[:i]
	}
	text = text[:min(len(text), 512)]
	for _, sign := range listErrors {
		if within(text, sign) {
			return Other
		}
	}
	return DNSBLReject
}

// listErrors are signs of such an error, in lower case. Spamhaus: "; Error: open resolver; https://check.spamhaus.org/returnc/pub/".
// SURBL, URIBL and others: "query refused", "blocked query". Some MTAs print the code itself.
var listErrors = []string{
	"error: ", "/returnc/", "open resolver", "public resolver", "127.255.255.", "127.0.0.255", "too many queries", "excessive number of queries", "query limit", "queries refused",
	"query refused", "blocked query", "query blocked",
}
