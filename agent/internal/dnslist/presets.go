package dnslist

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// A List is one DNS list and what its answers mean.
type List struct {
	Name    string // as people see it: never holds the key
	Zone    string // without the key
	KeyFile string // the first line is a secret label in front of the zone
	Codes   []Code
	Rate    float64 // queries per second
	Daily   int     // queries per day (UTC)

	key      string
	errors   []errorCode
	answers  Pattern // what is an error elsewhere, and an answer here
	noClean  bool    // it has no address that is surely not listed
	noListed bool    // it has no test entry
	needsKey bool
	hint     string // for refusals
	page     string // about an address, which stands for {}
}

// A Code is what answers of a pattern count. Each Code counts once per source, however many answers match it.
type Code struct {
	Pattern Pattern
	Points  float64 // negative for welcome
	Words   string
	policy  bool // see List.policy
}

type errorCode struct {
	pattern      Pattern
	reason, hint string
}

// What is kept to if the config says nothing.
const (
	DefaultRate  = 50
	DefaultDaily = 100_000
)

const publicHint = "ask through a resolver of your own (unbound, bind) that does not forward, or use a registered key"

// Errors of any list. Spamhaus: docs.spamhaus.com, return codes; the others do as it does.
var commonErrors = []errorCode{
	{mustPattern("127.255.255.250"), "the list says that the key is disabled (127.255.255.250)", "look into your account with the list"},
	{mustPattern("127.255.255.251"), "the list says that the key belongs to another account (127.255.255.251)", "look into your account with the list"},
	{mustPattern("127.255.255.252"), "the list says that the zone name is wrong (127.255.255.252)", "check the zone's spelling and the key"},
	{mustPattern("127.255.255.254"), "the list refuses public and open resolvers, and those without reverse name (127.255.255.254)", publicHint},
	{mustPattern("127.255.255.255"), "the list says: too many queries, or not registered (127.255.255.255)", "ask fewer, register, or use a registered key"},
	{mustPattern("127.255.255.[0..255]"), "the list answers with an error code (127.255.255.x)", publicHint},
	{mustPattern("127.0.0.255"), "the list says: over the limit (127.0.0.255)", "register with the list, or use fewer queries"},
	{mustPattern("127.0.1.255"), "the list says that it is for names, not for addresses (127.0.1.255)", "take the zone out: it is no list of addresses"},
	{mustPattern("127.0.2.255"), "the list says that it is for names, not for addresses (127.0.2.255)", "take the zone out: it is no list of addresses"},
	{mustPattern("127.0.0.1"), "the list answers 127.0.0.1, by which lists say that a query was blocked", publicHint},
}

func code(pattern string, points float64, words string) Code {
	return Code{Pattern: mustPattern(pattern), Points: points, Words: words}
}

var zenCodes = []Code{
	code("127.0.0.2", 80, "SBL"),
	code("127.0.0.3", 60, "CSS"),
	code("127.0.0.4", 60, "XBL"),
	code("127.0.0.9", 100, "DROP"),
	{Pattern: mustPattern("127.0.0.[10..11]"), Words: "PBL", policy: true}, // end-user ranges: policy, not evidence
	code("127.0.0.30", 100, "BCL"),
}

// presets are lists whose codes are known. Their points are ours: with a threshold of 100 one alone hardly ever blocks.
var presets = []List{
	{Zone: "zen.spamhaus.org", page: "https://check.spamhaus.org/results/?query={}", Codes: zenCodes, hint: publicHint},
	{Zone: "zen.dq.spamhaus.net", page: "https://check.spamhaus.org/results/?query={}", Codes: zenCodes, needsKey: true},
	{Zone: "authbl.dq.spamhaus.net", page: "https://check.spamhaus.org/results/?query={}", Codes: []Code{code("127.0.0.20", 60, "AuthBL")}, needsKey: true},
	{Zone: "bl.spamcop.net", page: "https://www.spamcop.net/bl.shtml?{}", Codes: []Code{code("127.0.0.2", 40, "SpamCop")}},
	{Zone: "psbl.surriel.com", page: "https://psbl.org/listing?ip={}", Codes: []Code{code("127.0.0.2", 35, "PSBL")}},
	{Zone: "b.barracudacentral.org", page: "https://www.barracudacentral.org/rbl/removal-request/{}", Codes: []Code{code("127.0.0.2", 45, "Barracuda")}, hint: "register your resolver's address at barracudacentral.org"},
	{Zone: "bl.blocklist.de", page: "https://www.blocklist.de/en/delist.html?ip={}", Codes: []Code{code("127.0.0.[2..30]", 35, "blocklist.de")}},
	{Zone: "dnsbl-1.uceprotect.net", page: "https://www.uceprotect.net/en/rblcheck.php", Codes: []Code{code("127.0.0.2", 25, "UCEPROTECT-1")}},
	// .13 to .16 are neutral.
	{Zone: "rep.mailspike.net", page: "https://mailspike.org/", Codes: []Code{
		code("127.0.0.10", 50, "Mailspike worst"), code("127.0.0.11", 40, "Mailspike very bad"), code("127.0.0.12", 25, "Mailspike bad"),
		code("127.0.0.[13..16]", 0, "Mailspike neutral"),
		code("127.0.0.17", -10, "Mailspike fair"), code("127.0.0.18", -20, "Mailspike good"), code("127.0.0.19", -30, "Mailspike very good"), code("127.0.0.20", -40, "Mailspike excellent"),
	}},
	// The last octet is the class (dronebl.org/classes). Those count on whose meaning all published tables agree; 1 is the class
	// of tests, and 255 what has none: no errors.
	{Zone: "dnsbl.dronebl.org", page: "https://dronebl.org/lookup?ip={}", Codes: []Code{
		code("127.0.0.3", 40, "IRC drone"), code("127.0.0.8", 50, "SOCKS proxy"), code("127.0.0.9", 50, "HTTP proxy"), code("127.0.0.13", 45, "brute force"),
		code("127.0.0.6", 0, "spambot or worm"), code("127.0.0.7", 0, "DDoS drone"), code("127.0.0.[15..16]", 0, "compromised router or worm"),
		code("127.0.0.17", 0, "botnet, experimental"), code("127.0.0.19", 0, "abused VPN"), code("127.0.0.[2;4..5;10..12;14;18]", 0, "another class"),
		code("127.0.0.1", 0, "test"), code("127.0.0.255", 0, "no class"),
	}, answers: mustPattern("127.0.0.[1;255]")},
	// 127.0.category.trust
	{Zone: "list.dnswl.org", Codes: []Code{
		code("127.0.[2..15].0", 0, "DNSWL none"), code("127.0.[2..15].1", -20, "DNSWL low"), code("127.0.[2..15].2", -60, "DNSWL medium"), code("127.0.[2..15].3", -100, "DNSWL high"),
	}},
	{Zone: "hostkarma.junkemailfilter.com", page: "https://ipadmin.junkemailfilter.com/remove.php?ip={}", Codes: []Code{
		code("127.0.0.1", -20, "white"), code("127.0.0.2", 40, "black"), code("127.0.0.3", 0, "yellow"), code("127.0.0.4", 15, "brown"), code("127.0.0.5", 0, "no blacklist"),
	}, answers: mustPattern("127.0.0.1"), noClean: true},
	// The last octet of this one is a bit mask, of that one a score.
	{Zone: "bl.score.senderscore.com", page: "https://senderscore.org/", Codes: []Code{code("127.0.0.[1..254]", 30, "Sender Score blocklist")}, answers: mustPattern("127.0.0.1"), noClean: true, hint: "register at senderscore.org"},
	{Zone: "score.senderscore.com", page: "https://senderscore.org/", Codes: []Code{
		code("127.0.4.[0..9]", 40, "score below 10"), code("127.0.4.[10..29]", 15, "score below 30"), code("127.0.4.[30..79]", 0, "score"), code("127.0.4.[80..89]", -10, "score above 80"), code("127.0.4.[90..100]", -20, "score above 90"),
	}, noListed: true, noClean: true, hint: "register at senderscore.org"},
}

var gone = map[string]string{
	"dnsbl.sorbs.net": "SORBS was shut down in June 2024", "ix.dnsbl.manitu.net": "NiX Spam is empty since January 2025", "dnsbl.ahbl.org": "AHBL was shut down in 2015",
	"combined.njabl.org": "NJABL was shut down in 2013", "dnsbl.njabl.org": "NJABL was shut down in 2013", "relays.ordb.org": "ORDB was shut down in 2006", "bl.spamcannibal.org": "spamcannibal was shut down in 2018",
}

// Presets lists the zones whose codes are known.
func Presets() (names []string) {
	for _, p := range presets {
		names = append(names, p.Zone)
	}
	return names
}

// NewList returns the preset for a zone, or a list without codes for any other.
func NewList(zone string) (List, error) {
	z, err := zoneName(zone)
	switch {
	case strings.HasSuffix(z, ".dq.spamhaus.net") && strings.Count(z, ".") > 3:
		return List{}, errors.New("a zone of Spamhaus DQS with the key in it: the key is a secret, put it into a file and name that as key_file")
	case err != nil:
		return List{}, fmt.Errorf("%.100q %w", zone, err)
	}
	for dead, why := range gone {
		if z == dead || strings.HasSuffix(z, "."+dead) {
			return List{}, fmt.Errorf("%s: %s", z, why)
		}
	}
	l := List{Name: z, Zone: z, Rate: DefaultRate, Daily: DefaultDaily}
	if i := slices.IndexFunc(presets, func(p List) bool { return p.Zone == z }); i >= 0 {
		l = presets[i]
		l.Name, l.Rate, l.Daily, l.Codes = z, DefaultRate, DefaultDaily, slices.Clone(l.Codes)
	}
	l.errors = commonErrors
	return l, nil
}

// NeedsKey says that the list answers nothing without a KeyFile.
func (l *List) NeedsKey() bool { return l.needsKey }

// ErrorCode says whether an answer is an error by this list's table, whatever its codes say.
func (l *List) ErrorCode(a netip.Addr) (reason, hint string, ok bool) {
	if l.answers.Match(a) {
		return "", "", false
	}
	for i := range l.errors {
		if e := &l.errors[i]; e.pattern.Match(a) {
			hint = e.hint
			if l.hint != "" {
				hint = l.hint
			}
			return e.reason, hint, true
		}
	}
	return "", "", false
}

// LoadKey reads the key. Its errors never hold it.
func (l *List) LoadKey() error {
	if l.KeyFile == "" {
		if l.needsKey {
			return fmt.Errorf("%s needs a key_file", l.Name)
		}
		return nil
	}
	fi, err := os.Stat(l.KeyFile)
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() || fi.Size() > 4096 {
		return fmt.Errorf("%s is no file with a key", l.KeyFile)
	}
	if fi.Mode().Perm()&0o007 != 0 {
		return fmt.Errorf("%s can be read by everybody: chmod 640", l.KeyFile)
	}
	b, err := os.ReadFile(l.KeyFile)
	if err != nil {
		return err
	}
	first, _, _ := strings.Cut(string(b), "\n")
	key := strings.ToLower(strings.TrimSpace(first))
	if len(key) < 4 || len(key) > 63 || strings.Trim(key, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
		return fmt.Errorf("%s: the first line is no key (4 to 63 letters and digits)", l.KeyFile)
	}
	l.key = key
	return nil
}

// suffix is what queries end with.
func (l *List) suffix() string {
	if l.key != "" {
		return l.key + "." + l.Zone
	}
	return l.Zone
}

// redact takes the key out of text that came from outside.
func (l *List) redact(s string) string {
	if l.key == "" {
		return s
	}
	for {
		i := strings.Index(strings.ToLower(s), l.key)
		if i < 0 {
			return s
		}
		s = s[:i] + "***" + s[i+len(l.key):]
	}
}
