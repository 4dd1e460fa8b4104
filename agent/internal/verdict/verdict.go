// Package verdict says which sources are to be blocked: (Event, now) -> Verdict. It has no clock, no goroutines and
// no files; the same events with the same times give the same verdicts, so a log can be replayed. It knows nothing of
// never-block lists, of the block table or of the kernel: those decide whether a verdict has an effect.
//
// # The score
//
// Each prefix (IPv4 /32, IPv6 /64 by default) has a score that halves every HalfLife. An offence adds its kind's weight.
// At Threshold, less a hair (see reached), there is a verdict. The default weights, in points, with a threshold of 100:
//
//	trap              100  see traps
//	pregreet           50  a program that talks before the greeting is no mail server; two are enough
//	relay_denied       25  nobody relays through strangers by accident four times an hour
//	auth_failure       20  see the password guard
//	too_many_errors    20  the MTA itself gave up on the session
//	unknown_recipient  10  see the ratio guard
//	protocol_error     10  web scanners, smuggling attempts, broken robots
//	spam_reject        10  a content filter is wrong now and then, and forwarders pass on what they get
//	sender_reject       2  forwarders pass on dead senders; a host that is refused for it gets nothing in anyway
//	helo_reject         2  a misconfigured host repeats it with each try, and must get in again once it is mended
//	rate_limit          2  the limits are ours, and senders of real mail run into them
//	no_rdns             0  comes with every connection of a host with a sloppy zone, and such hosts send real mail
//	dnsbl_reject        0  a list that answers wrongly lists everybody; the agent weighs those that its own query confirms
//	dns_listed          -  as many points as the lists' codes have, see Listed
//	greylisted, lost_connection, connect, disconnect, other  0  honest hosts and monitors do these all day
//
// # The ratio guard
//
// An accepted message (delivered) cancels one offence of any kind but auth_failure: with n offences of w points
// together (both decayed) and a credit of c messages, the score is w*max(0, n-c)/n, which for unknown recipients alone
// is weight*max(0, unknown-accepted). Messages from before the present burst count in full, up to 5000, and halve
// every 7 days; those inside the burst count a tenth but for the first 30, which count one and a half, so
// that one valid recipient among 500 buys nothing. A burst begins with the first offence after the score was down to a
// hundredth of the threshold. A message pays for one offence, once: what cancelled something is used up as that fades. So
// who sends more that is refused than that is accepted has no standing in the long run, and who bought 50 messages has 50
// guesses, not 50 an hour.
//
// Inside a burst a source has credit for the recipients that it reached too, as far as the log names them (Recipient): one
// and a half offences for each different one, fading as the score does; for repeated ones once there are 150 different
// ones. Who knows our recipients is not guessing at them, and a newsletter with 40% dead addresses, which nobody has heard
// of before, is let through, as is all that misses no more than half as much again as it hits. user+tag counts as user, and behind an alias or a
// catch-all of the MTA's own it is the mailbox that counts. At a site with few mailboxes there is not much to be had that
// way: a backup MX without history that passes on more guesses than that is told by SetOwnMX, or by an allow.
//
// What a spammer can buy, in unknown recipients before the block (TestBuyingCredit):
//
//	nothing                                                   10
//	a message before the attack, a quarter of an hour        102, ten thresholds: see known senders
//	50 messages before                                       150, of which 50 are paid for and used up
//	the same, and then slowly, 15 an hour                     63; without credit 3 an hour go unnoticed: see patience
//	one message to the same recipient, 18 guesses behind it   34
//	one message to the same recipient per guess               61; two: 70; it takes ten, each of them in somebody's mailbox
//	one to one of 20 known recipients per guess               96
//	one to one of 400 known recipients per two guesses       250
//	one to one of 150 or more known recipients per guess     without end: it knows what it guesses at
//
// A message accepted inside a burst besides forgives up to 20 points of protocol_abuse and flood: what the MTA notes about a
// message and takes it all the same is sloppiness, not an attack. Postfix and Sendmail tell of a message before a filter has seen it:
// one that it refuses or throws away is taken back, and what is not forgives when it is delivered.
//
// # Traps
//
// One hit blocks, and neither messages inside the burst nor a few before it cancel it: the recipient was scraped or
// guessed. But a list host or provider meets one now and then, because somebody signed it up or guessed it, and its
// block costs its other users' mail: a known sender pays 100 accepted messages for each hit (1% of its mail) as long as it
// has them. If it has not it is blocked: with fewer than 10 messages at once, else after the wait of a known sender. So 100
// messages accepted before buy a spammer one hit. Whoever writes a domain that gets mail among the traps by
// mistake trips the breaker after ten known senders. What is no hit at all (bounces, callbacks, our own users) package maillog says.
// A trap is to be kept secret: who knows it can sign it up for newsletters of others.
//
// # Areas
//
// A source offends from a fourth of the threshold on, and once it does it is noted in its /24 (IPv4) or in its /56 and
// /48 (IPv6). The verdict is on the whole area when many of its parts began to offend within one to two half-lives:
//
//   - 32 different hosts of a /24, an eighth of it, over the threshold, or 128, a half of it, that offend. Snowshoe
//     senders use whole /24s; sixteen infected customers of a provider do happen, and are blocked one by one, and
//     sixty with a few wrong recipients each are not blocked at all.
//   - 16 different /64s of a /56, which is one customer's; 16 different /56s of a /48 for those who were given that much.
//   - 192 hosts of a /24, or 64 parts of a /56 or /48, that had a tenth of the threshold: one unknown recipient each is enough, since
//     a /48 has 65,536 /64s to guess twice from. Not if any of them has credit: a pool of a large provider has typos too.
//
// Never when mail was accepted from the area in two different clock hours, or people logged in, as far as its sources
// are remembered; a known sender who offends is not noted at all. The ports are those of the cause; the submission ports
// are closed only if half of the offenders guessed passwords. While the block of an area stands nobody in it
// is blocked once more, except for what it leaves open: parts reset by hand, and the submission ports. The 4096 areas with
// most offenders are remembered (248 bytes each). A fourth is enough because those who have a network to hide in stop early.
//
// # The password guard
//
// The first failure of a login name counts in full, that of the first three names a half: somebody who sets up a new phone
// tries joe, joe@example.org, joe.user and so on, and a family has three phones. A name that logs in after all is taken back.
// Further failures of the same name count a hundredth if no more than six come in a row, then a quarter; 45 seconds
// without any end a row. A saved wrong password comes every minute or every few for ever, at four connections at once, and a person
// mistypes it three times, and up to four names may have so many each; a guesser does not wait. The bad cases: a program that tries the same wrong password every five
// seconds, which cannot be told from a guesser, is blocked after two minutes; a guesser who tries one name no more than
// five times a minute is not, which is what limits on logins (anvil's, Dovecot's delays) are for.
//
// A failure without a name (older Postfix logs none) counts a tenth, after a pause of 45 seconds a twentieth, and from the fourth in
// a row with at most ten seconds between them a half: a saved wrong password may come every minute for ever, as one with a
// name may. If it comes more often it is blocked, since without names it may be any number of them. The bad case: a
// guesser who tries no more than one a minute is not found.
//
// Successful logins are credit for failures just as messages are for the rest. The auth part alone must
// reach the threshold before the submission ports are closed (cause auth_brute, scope all).
//
// # The same again, and among good ones
//
// So with recipients: one that was unknown before counts a twentieth, from the third time on, of a source that tries few
// (four of 64 bits), if it comes after a pause and no more than two come in a row: what is sent every five minutes to a mailbox
// that was deleted is no guess. One of a message that has a good recipient already counts two fifths, as far as the log tells
// (Postfix): the teacher who writes to sixty pupils, of whom fifteen have left, has credit for the others only when the message
// is in. So a spammer whose each message has one good recipient in front has some 35 guesses.
//
// # Known senders, and our own faults
//
// A source is a known sender if mail of it was accepted (for failed logins: if somebody logged in) in an earlier quarter of
// an hour by the clock. It is not blocked when it reaches the threshold, but at its next offence three minutes later, or as soon as it
// has ten times the threshold. Those minutes are for finding out whether the fault is ours, before anybody is blocked for it:
//
//   - An outage: within one to two minutes, or 15 to 30 at a small site, at least 8 different known senders were refused
//     for the same kind, and at least four times as many as sources had mail accepted (logged in). A dictionary attack
//     does not keep others' mail out, and a handful of customers with a virus are a handful among those who deliver.
//     The kind is then not counted against anybody, known or not, until ten minutes after the signs are gone;
//     nor is too_many_errors, which follows from all of them. What known senders had collected is forgotten. Seen at
//     the latest two minutes after it began if a few known senders write per minute, hence the three minutes.
//   - The breaker: within ten minutes a rule (the cause of a verdict) would block 10 known senders, and they are a tenth
//     or more of all that it would block. The rule then blocks no known sender until half an hour after it was
//     last so. It goes on blocking strangers: else ten hosts that delivered one message each could switch it off for
//     the hundred that attack beside them. 5000 attackers with a hundred former senders among them do not trip it.
//
// Both are in Notices. A sender without any history who offends in the first minute of an outage is still blocked: he
// cannot be told from an attacker. At a site with fewer than eight known senders in half an hour no outage can be seen, nor in
// the first quarter of an hour of a new agent, which knows nobody.
//
// # Patience
//
// Who stays below the threshold by taking his time (seven unknown recipients an hour, or four names) is blocked for what has
// come together in one burst, which lasts as long as he goes on: for 80 different unknown recipients in a day, if none of
// his mail was accepted, and for some 24 different login names, if nobody logged in.
//
// # Try again later
//
// What Postfix refused for now (4xx) honest servers try again, for days. A sender, HELO name or host that was refused so
// counts a tenth: its DNS may be down for an hour. So does a recipient that was refused to the same source before, as long as
// they are not many (half of 64 bits), for those who have set unknown_local_recipient_reject_code to 450; and one that we do
// not relay to (454, Postfix's default), if no more than three come in a row without four minutes between them: the domain has
// left us, and its MX record has not.
//
// The MTA's own limits (rate_limit) count once a second: a provider that opens a hundred connections at once is refused
// fifty times before the first message is through, a flood goes on.
//
// # Stray domains
//
// A domain has moved away and its MX record still names us, or comes tomorrow and it names us already: the whole world is
// refused to relay, and four refusals are a block. So once three known senders (bits of 64) were refused for the same domain
// within a day, refusals for it count against nobody, and Notices say so. Nothing is relayed all the same: who feigns it with
// three hosts that delivered mail before may knock at one domain. Only Postfix's lines are followed so, and Exim's. A monitor that asks
// whether we are an open relay, with one recipient and four minutes or more between, counts a tenth.
//
// # Bounces and callbacks
//
// When somebody sends spam in our name, mail servers all over the world return it to senders that we do not have, or ask
// whether we have them. Both come from the null sender (or postmaster's and the like), one recipient at a time. Such a
// refusal counts a tenth, and not for patience, unless it is the third that comes within a second of what came before (Exim asks for a
// name that cannot be, and then for the one it is about), or has a good recipient beside it, as neither has: a dictionary in the name
// of the null sender has 12 guesses if it is fast and 100 if it is slow.
//
// # The crowd
//
// Many people may stand behind one source: a load balancer or NAT, a webmail, a forwarder, a filtering service, of which a
// block would be an outage for all of them although it brings less than a tenth of the mail. Two signs of it are
// remembered for three to five days, for the 2048 sources that have most of them (80 bytes each):
//
//   - 5 different people logged in: the submission ports are not closed to it. Nobody can feign that without five
//     passwords.
//   - mail of 12 different sender domains was accepted, for 12 different recipients, in 6 different hours: it is not
//     blocked at all. A spammer can feign that, with 12 addresses of ours that take his mail, and 6 hours; that much mail
//     getting in is worth more to him than guessing. The log must name the recipients (see Recipient) and, as it does but for
//     OpenSMTPD, the senders.
//
// Who is spared so is in Notices, as under the great share.
//
// # The great share
//
// A source that brought a tenth of the mail accepted in the last 24 hours (whole hours) is never blocked: it is a load
// balancer, a NAT or a filtering service in front, and its block would be an outage. It needs at least 20 messages,
// in three different hours; from a half of all mail on, 20 messages will do, since a new agent behind a load
// balancer has no hours to wait for. So a spammer at a host with three messages a day gains nothing, and one who wants
// the immunity of a tenth must bring a tenth of the mail for three hours. Who is spared is in Notices for a day.
//
// So is an MX of our own domains (SetOwnMX), which passes on what others try at it. It is not learnt from the log: that
// mail for us comes from it every sender has in common with it, and a name under our domain a provider's customers have
// too.
//
// # Greylisting weighs nothing
//
// Not even hammering at a greylist does, because it cannot be told from honest retries. Greylisting is by sender, recipient
// and source, and an event carries only the source: a newsletter's first thousand recipients look like one recipient tried
// a thousand times. Large senders do retry within seconds, some for hours, until the delay of the last address of
// their pool is over. And there is little to gain: who hammers gets nothing in, and the MTA's own limits (rate_limit) see him.
// The tuple could be remembered, but not judged: hundreds of quick retries are what some large senders do to each new
// recipient, and a bot does less. Who wants it can give greylisted a weight; an accepted message cancels each.
//
// # Old and late lines
//
// Events may be older than now (a log read at start): they count with the decay they would have by now, but an event
// older than HalfLife gives no verdict. Times more than five minutes ahead of now are taken as now. The passing of
// time never raises a score.
//
//	s := verdict.New(verdict.DefaultConfig())
//	if v, ok := s.Observe(&event, time.Now()); ok {
//		fmt.Println(v.Prefix, v.Cause, v.Until, v.Evidence.Words())
//	}
package verdict

import (
	"encoding/json"
	"fmt"
	"math"
	"math/bits"
	"net/netip"
	"strconv"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// Config is what New needs. Start from DefaultConfig; zero values of everything but Weights and Seed mean the default.
type Config struct {
	Threshold  float64                   // points
	HalfLife   time.Duration             // of the score
	For        time.Duration             // how long the first block lasts
	Max        time.Duration             // how long the longest lasts: each repetition doubles For up to this
	IPv6Prefix int                       // bits, 16 to 128
	Weights    [maillog.NumKinds]float64 // points per event; Delivered and AuthSuccess are credit and have none
	Sources    int                       // how many sources are remembered; about 64 bytes each
	Seed       uint64                    // of the table: secret, else an attacker can choose addresses that collide
	// Wait says that a source must not be judged yet, because it is not known what other nodes have to say of it; Elsewhere
	// judges it then. It is not asked for login attacks, of which others say nothing. nil: never.
	Wait func(source netip.Prefix, now time.Time) bool
}

// DefaultConfig returns the values of the package comment.
func DefaultConfig() Config {
	return Config{Threshold: 100, HalfLife: time.Hour, For: 72 * time.Hour, Max: 168 * time.Hour, IPv6Prefix: 64,
		Weights: DefaultWeights(), Sources: 1 << 20}
}

// DefaultWeights returns the table of the package comment.
func DefaultWeights() (w [maillog.NumKinds]float64) {
	w[maillog.Trap] = 100
	w[maillog.Pregreet] = 50
	w[maillog.RelayDenied] = 25
	w[maillog.AuthFailure] = 20
	w[maillog.TooManyErrors] = 20
	w[maillog.UnknownRecipient] = 10
	w[maillog.ProtocolError] = 10
	w[maillog.SpamReject] = 10
	w[maillog.SenderReject] = 2
	w[maillog.HeloReject] = 2
	w[maillog.RateLimit] = 2
	return w
}

const (
	creditHalfLife = 7 * 24 * time.Hour
	creditCap      = 5000 // messages or logins
	inBurst        = 0.1  // what a message or login inside a burst counts
	trusted        = 30   // messages inside a burst that count as if each had reached another recipient
	standing       = 100  // messages before the burst that a trap hit costs
	hardly         = 10   // with fewer a trap hit blocks without the wait of a known sender
	known          = 1.5  // offences that one recipient reached inside a burst outweighs
	knows          = 150  // distinct recipients from which on repeated ones are believed
	forgiven       = 20   // points of protocol_abuse and flood per message accepted inside a burst
	knownAfter     = 900  // seconds of the spans of which an earlier one makes a known sender
	ahead          = 300  // seconds that an event may be ahead of now
	maxCount       = 1e5  // events one line may stand for
	asked          = 0.1  // what an unknown recipient of a bounce or callback counts
	retried        = 0.1  // what is refused for now counts when it is tried again
	quickAsk       = 1    // seconds to what came before, up to which it is none
	pairs          = 2    // ... but for so many in a row: some ask for a name that cannot be and then for the one it is about
	patientMail    = 80   // different unknown recipients in a day that block without a score
	patientNames   = 20   // bits of names, about 24 of them, that do so

	midway       = 0.4  // what an unknown recipient of a message counts that has a good one
	missedBefore = 0.05 // what a recipient counts that was unknown before
	missedFew    = 4    // ... of so few
	twoInARow    = 2    // ... if no more than these come in a row

	firstNames  = 3    // login names that fail
	firstName   = 0.5  // ... and count so much
	sameName    = 0.01 // what a further failure of a name counts
	sameNameRun = 0.25 // ... and from the seventh in a row on
	inARow      = 6
	maxPhones   = 4  // names that may have so many each
	pause       = 45 // seconds that end a row
	relayRow    = 3  // the same for what we do not relay
	relayPause  = 240
	noName      = 0.1
	noNamePause = 0.05 // after a pause
	noNameRun   = 0.5
	quick       = 10 // seconds
)

// causes says what a kind speaks for. Kinds not named here are protocol abuse if the config gives them a weight.
var causes = [maillog.NumKinds]block.Cause{
	maillog.UnknownRecipient: block.Dictionary,
	maillog.RelayDenied:      block.RelayProbe,
	maillog.AuthFailure:      block.AuthBrute,
	maillog.DNSBLReject:      block.DNSBL,
	maillog.DNSListed:        block.DNSBL,
	maillog.RateLimit:        block.Flood,
	maillog.Connect:          block.Flood,
	maillog.Trap:             block.Trap,
}

func causeOf(k maillog.Kind) block.Cause {
	if c := causes[k]; c != block.NoCause {
		return c
	}
	return block.ProtocolAbuse
}

// Verdict says: block Prefix on the ports of Scope until Until, because of Cause.
type Verdict struct {
	Prefix   netip.Prefix `json:"prefix"` // a source, or a /24, /56 or /48 of which many offended
	Source   netip.Prefix `json:"source"` // whose offence led to it
	Cause    block.Cause  `json:"cause"`
	Scope    block.Scope  `json:"scope"`
	Since    time.Time    `json:"since"`
	Until    time.Time    `json:"until"`  // whole seconds
	Repeat   int          `json:"repeat"` // how many blocks of this source went before, as far as is remembered
	Evidence Evidence     `json:"evidence"`
}

// Evidence is what stands behind a score. Counts do not decay; they start anew with each burst.
type Evidence struct {
	Score     float64   `json:"score"` // points, with credit taken off
	Threshold float64   `json:"threshold"`
	Counts    Counts    `json:"counts"`
	Accepted  uint32    `json:"accepted"`         // messages, halved every 7 days, less those used up: see the ratio guard
	Logins    uint32    `json:"logins,omitempty"` // successful ones, likewise
	Parts     int       `json:"parts,omitempty"`  // of a /24, /56 or /48: hosts, /64s or /56s that offended
	Names     int       `json:"names,omitempty"`  // distinct login names that failed, an estimate good to about 100
	Lists     string    `json:"lists,omitempty"`  // what DNS lists say, if that was asked just then
	Elsewhere Elsewhere `json:"elsewhere,omitzero"`
	First     time.Time `json:"first,omitzero"` // first and last offence of the burst, whole seconds
	Last      time.Time `json:"last,omitzero"`
}

// Elsewhere is what other nodes of the cluster say of a source, as it counts here.
type Elsewhere struct {
	Points   float64 `json:"points"`   // before credit
	Accepted uint32  `json:"accepted"` // messages, less those used up here
}

// Counts is a number of events per kind; 65535 means that many or more. In JSON it is an object of kind names.
type Counts [maillog.NumKinds]uint32

// MarshalJSON leaves out the zeroes.
func (c Counts) MarshalJSON() ([]byte, error) {
	m := make(map[string]uint32)
	for k, n := range c {
		if n > 0 {
			m[maillog.Kind(k).String()] = n
		}
	}
	return json.Marshal(m)
}

// UnmarshalJSON reads what MarshalJSON wrote and ignores kinds it does not know.
func (c *Counts) UnmarshalJSON(b []byte) error {
	var m map[string]uint32
	if err := json.Unmarshal(b, &m); err != nil {
		return err
	}
	*c = Counts{}
	for name, n := range m {
		if k, ok := maillog.ParseKind(name); ok {
			c[k] = n
		}
	}
	return nil
}

// Account is what is known about a source.
type Account struct {
	Prefix   netip.Prefix `json:"prefix"`
	Evidence Evidence     `json:"evidence"`       // Score is decayed to the time of the question
	Raw      float64      `json:"raw"`            // points before credit
	Auth     float64      `json:"auth"`           // the part of Score that comes from failed logins
	Cause    block.Cause  `json:"cause"`          // the largest contributor, none without offences
	Until    time.Time    `json:"until,omitzero"` // end of the last verdict's block, zero if there was none
	Repeat   int          `json:"repeat"`
	Held     time.Time    `json:"held,omitzero"`    // a known sender over the threshold: is blocked if it goes on after this
	Wide     netip.Prefix `json:"wide,omitzero"`    // the standing block of its /24, /56 or /48
	Spared   string       `json:"spared,omitempty"` // why it is never blocked automatically
}

var kindWords = [maillog.NumKinds][2]string{
	maillog.Connect:          {"connection", "connections"},
	maillog.UnknownRecipient: {"unknown recipient", "unknown recipients"},
	maillog.DNSBLReject:      {"DNSBL rejection", "DNSBL rejections"},
	maillog.DNSListed:        {"listing by DNS lists", "listings by DNS lists"},
	maillog.RelayDenied:      {"relay attempt", "relay attempts"},
	maillog.AuthFailure:      {"failed login", "failed logins"},
	maillog.NoRDNS:           {"connection without reverse name", "connections without reverse name"},
	maillog.HeloReject:       {"bad HELO", "bad HELOs"},
	maillog.SenderReject:     {"bad sender", "bad senders"},
	maillog.Pregreet:         {"early talk", "early talks"},
	maillog.ProtocolError:    {"protocol error", "protocol errors"},
	maillog.TooManyErrors:    {"session with too many errors", "sessions with too many errors"},
	maillog.RateLimit:        {"rate limit hit", "rate limit hits"},
	maillog.Greylisted:       {"greylisting", "greylistings"},
	maillog.SpamReject:       {"spam rejection", "spam rejections"},
	maillog.LostConnection:   {"lost connection", "lost connections"},
	maillog.Trap:             {"trap hit", "trap hits"},
}

// Words says it to a person: "52 unknown recipients, 0 accepted, in 41 s".
func (e Evidence) Words() string {
	b := make([]byte, 0, 128)
	say := func(before string, n int64, after string) {
		b = append(strconv.AppendInt(append(b, before...), n, 10), after...)
	}
	if e.Parts > 0 {
		say("", int64(e.Parts), " parts of it offend: ")
	}
	for k, n := range e.Counts {
		w := kindWords[k]
		if n == 0 || w[0] == "" {
			continue
		}
		say("", int64(n), " ")
		if n == 1 {
			b = append(b, w[0]...)
		} else {
			b = append(b, w[1]...)
		}
		if maillog.Kind(k) == maillog.AuthFailure && e.Names > 0 {
			say(" (about ", int64(e.Names), " names)")
		}
		b = append(b, ", "...)
	}
	say("", int64(e.Accepted), " accepted")
	if e.Logins > 0 {
		say(", ", int64(e.Logins), " logins")
	}
	if e.Lists != "" {
		b = append(append(b, ", listed by "...), e.Lists...)
	}
	if !e.First.IsZero() {
		b = append(append(b, ", in "...), roughly(e.Last.Sub(e.First))...)
	}
	if e.Elsewhere != (Elsewhere{}) {
		b = fmt.Appendf(b, "; on other nodes %.0f points, %d accepted", e.Elsewhere.Points, e.Elsewhere.Accepted)
	}
	return string(b)
}

// roughly prints a duration in its largest fitting unit.
func roughly(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	default:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
}

// Words says what the source did.
func (a Account) Words() string { return a.Evidence.Words() }

// Why says where the score stands and what holds it down.
func (a Account) Why() string {
	s := fmt.Sprintf("score %.0f of %.0f", a.Evidence.Score, a.Evidence.Threshold)
	if credit := a.Raw - a.Evidence.Score; credit >= 1 {
		s += fmt.Sprintf(" (%.0f points are cancelled by accepted mail and logins)", credit)
	}
	if !a.Held.IsZero() {
		s += "; its mail was accepted before, so it is blocked only if this goes on after " + a.Held.Format("15:04:05 MST")
	}
	if a.Wide.IsValid() {
		s += "; it is blocked as part of " + a.Wide.String()
	}
	if a.Spared != "" {
		s += "; it is never blocked automatically: " + a.Spared
	}
	return s
}

// Scorer keeps the accounts of all sources. It is for one goroutine at a time.
type Scorer struct {
	cfg Config
	table
	areas   areas
	walked  uint32 // when survey last walked over the table
	share   share
	crowds  crowds
	spared  spared
	own     map[key]netip.Addr // MXs of our own domains, see SetOwnMX
	alarms  alarms
	away    map[key]*away
	news    []Notice
	strays  [strays]stray
	strayed bool    // strays have changed
	calm    float64 // a score below this is over
	decay   halving // of scores
	fade    halving // of credit
}

// halving is 2^(-seconds/half-life), for up to 18 hours out of two tables.
type halving struct {
	rate   float64 // 1/half-life in 1/s
	fine   [256]float64
	coarse [256]float64
}

func (h *halving) init(half time.Duration) {
	h.rate = 1 / half.Seconds()
	for i := range h.fine {
		h.fine[i], h.coarse[i] = math.Exp2(-float64(i)*h.rate), math.Exp2(-float64(i<<8)*h.rate)
	}
}

// left is what is left of 1 after so many seconds.
func (h *halving) left(seconds uint32) float64 {
	if seconds < 1<<16 {
		return h.fine[seconds&0xff] * h.coarse[seconds>>8]
	}
	return math.Exp2(-float64(seconds) * h.rate)
}

// New returns a scorer that knows nothing yet. Its memory grows with the number of sources, up to cfg.Sources.
func New(cfg Config) *Scorer {
	d := DefaultConfig()
	if !(cfg.Threshold > 0) {
		cfg.Threshold = d.Threshold
	}
	if cfg.HalfLife < time.Second {
		cfg.HalfLife = d.HalfLife
	}
	if cfg.For < time.Second {
		cfg.For = d.For
	}
	if cfg.Max < cfg.For {
		cfg.Max = max(d.Max, cfg.For)
	}
	if cfg.IPv6Prefix == 0 {
		cfg.IPv6Prefix = d.IPv6Prefix
	}
	cfg.IPv6Prefix = min(max(cfg.IPv6Prefix, 16), 128)
	if cfg.Sources <= 0 {
		cfg.Sources = d.Sources
	}
	cfg.Sources = min(cfg.Sources, 1<<24)
	for k, w := range cfg.Weights {
		if !(w > 0) || w > 1e6 {
			cfg.Weights[k] = 0
		}
	}
	s := &Scorer{cfg: cfg, calm: cfg.Threshold / 100}
	s.decay.init(cfg.HalfLife)
	s.fade.init(creditHalfLife)
	s.table.init(cfg)
	s.alarms.init()
	s.areas.init(cfg.Sources)
	return s
}

// Len returns how many sources are known.
func (s *Scorer) Len() int { return s.used }

// unix returns t in whole seconds since 1970, kept inside what 32 bits hold.
func unix(t time.Time) uint32 { return uint32(min(max(t.Unix(), 1), math.MaxUint32-1<<20)) }

// Observe takes in one event, read at now. It returns a verdict at the moment there is one to give.
func (s *Scorer) Observe(e *maillog.Event, now time.Time) (v Verdict, ok bool) {
	ok = s.ObserveInto(e, now, &v)
	return v, ok
}

// Minds says whether events of a kind can change anything, those that are Undone aside. With the default weights connects and disconnects cannot.
func (s *Scorer) Minds(k maillog.Kind) bool {
	switch k {
	case maillog.None:
		return false
	case maillog.Delivered, maillog.AuthSuccess, maillog.Recipient:
		return true
	}
	return k < maillog.NumKinds && (s.cfg.Weights[k] > 0 || evidenceSlot[k] > 0)
}

// ObserveInto is Observe for those who have many events: a verdict is large and seldom, and v is changed only if there is one.
func (s *Scorer) ObserveInto(e *maillog.Event, now time.Time, v *Verdict) bool {
	k := e.Kind
	if k == maillog.None || k >= maillog.NumKinds || !e.Source.IsValid() {
		return false
	}
	if k == maillog.Recipient {
		s.recipient(e, now)
		return false
	}
	if e.Undone {
		s.undo(e, now)
	}
	good := k == maillog.Delivered || k == maillog.AuthSuccess
	weight := s.cfg.Weights[k]
	if !good && weight == 0 {
		s.note(e)
		return false
	}
	n := min(max(e.Count, 1), maxCount)
	at, nowSec := times(e, now)
	key := s.key(e.Source)
	h := s.hash(key)
	_, slot, known := s.find(key, h)
	if !known {
		slot = s.insert(key, at)
	}
	r := s.rec(slot)
	s.touch(slot, r, good)
	gap := int64(at) - int64(r.at)
	r.meet(at)
	w := s.awayOf(slot, key, r, at)
	late := s.forward(r, at, nowSec)
	if good {
		class := 0
		if k == maillog.Delivered {
			s.share.add(key, uint32(n), at, nowSec)
		} else {
			class = 1
		}
		s.alarms.good(class, key, at, nowSec)
		s.meetsCrowd(key, h, e, at, nowSec)
		if r.flags&flagKnown != 0 && r.has() {
			r.flags |= flagTwice
		}
		if class == 1 {
			r.mistyped(e.User)
		}
		s.credit(r, e, float64(n), late)
		return false
	}
	if r.known(k) {
		if senders, ours := s.alarms.bad(k, key, at, nowSec); ours {
			s.outage(k, senders, nowSec)
		}
	}
	if s.alarms.suspended(k, nowSec) {
		if r.flags&flagBurst != 0 {
			s.evidence.add(slot, h, k, n, 0)
		}
		return false
	}
	if k == maillog.Trap && r.pays(n) {
		s.evidence.add(slot, h, k, n, at)
		return false
	}
	worth := s.decay.left(late)
	// Neither a bounce nor a question names somebody beside a good recipient.
	bounce := e.Automatic && !e.Midway && r.inRow(n, gap, quickAsk+1) < pairs
	switch {
	case bounce:
		worth *= asked
	case k == maillog.RelayDenied && s.astray(h, r, e, at, nowSec):
		if r.flags&flagBurst != 0 {
			s.evidence.add(slot, h, k, n, 0)
		}
		return false
	case e.Temporary && s.again(slot, h, r, e, n, gap):
		worth *= retried
	case k == maillog.RateLimit && known && gap == 0 && s.raw(r) > 0:
		s.evidence.add(slot, h, k, n, 0)
		return false
	case k == maillog.RelayDenied && s.sameRelay(slot, h, e, gap):
		worth *= retried
	case k == maillog.UnknownRecipient && s.before(slot, h, r, e, n, gap):
		worth *= missedBefore
	}
	if e.Midway && k == maillog.UnknownRecipient {
		worth *= midway
	}
	if s.raw(r) < min(s.calm, weight*float64(n)*worth/4) { // small weights must add up too
		s.begin(slot, r)
	}
	c := s.evidence.add(slot, h, k, n, at)
	before := s.score(r, c, w).sum()
	if c != nil && !bounce && (k == maillog.UnknownRecipient || k == maillog.RelayDenied) && e.User != 0 {
		c.missed |= 1 << (e.User >> 58)
	}
	if k == maillog.AuthFailure {
		r.fails += float32(r.guess(e.User, n, gap) * worth)
	} else {
		count := float64(n) * worth
		if k == maillog.Trap {
			count = 0 // no accepted message cancels it
		}
		r.offend(causeOf(k), weight*float64(n)*worth, count)
	}
	if nowSec < r.until && r.flags&flagHeld == 0 && (r.flags&flagAll != 0 || k != maillog.AuthFailure) && s.reached(before) {
		return false // blocked already, and judge would find nothing new
	}
	return s.judge(slot, key, r, c, k, before, at, nowSec, now, v)
}

// again says that what was refused for now was refused before: the same recipient, or one whose own fault it is until it is
// mended (its DNS is down, say).
func (s *Scorer) again(slot int, h uint64, r *record, e *maillog.Event, n int, gap int64) bool {
	switch e.Kind {
	case maillog.SenderReject, maillog.HeloReject, maillog.NoRDNS:
		return true
	case maillog.UnknownRecipient, maillog.RelayDenied:
		c := s.evidence.get(slot, h)
		same := c != nil && e.User != 0 && c.missed>>(e.User>>58)&1 == 1 && bits.OnesCount64(c.missed) < 32
		if e.Kind == maillog.RelayDenied { // a prober tries the same one too, and does not wait as a queue does
			return same && r.inRow(n, gap, relayPause) < relayRow
		}
		return same
	}
	return false
}

// sameRelay says that a source that tries to relay to one recipient only does so again, after a pause: a monitor that asks
// whether we are an open relay.
func (s *Scorer) sameRelay(slot int, h uint64, e *maillog.Event, gap int64) bool {
	if gap < relayPause || e.User == 0 {
		return false
	}
	c := s.evidence.get(slot, h)
	return c != nil && c.missed == 1<<(e.User>>58)
}

// before says that a source that tries few recipients there are not has tried this one before, and does not hammer at it: a
// cron job or a monitor whose mailbox was deleted, a mail that is sent again each day.
func (s *Scorer) before(slot int, h uint64, r *record, e *maillog.Event, n int, gap int64) bool {
	c := s.evidence.get(slot, h)
	if c == nil || e.User == 0 || c.missed>>(e.User>>58)&1 == 0 {
		return false
	}
	// Two recipients may share a bit, but half of many do not.
	different := bits.OnesCount64(c.missed)
	if different > missedFew || int(c.n[evidenceSlot[maillog.UnknownRecipient]-1]) < 2*different {
		return false
	}
	run := r.inRow(n, gap, pause)
	if run == 0 && gap < pause { // no pause yet
		r.setRow(twoInARow)
		return false
	}
	return run < twoInARow
}

// times returns when an event was and when it is taken in.
func times(e *maillog.Event, now time.Time) (at, nowSec uint32) {
	nowSec = unix(now)
	if !e.Time.IsZero() {
		if at = unix(e.Time); at <= nowSec+ahead {
			return at, nowSec
		}
	}
	return nowSec, nowSec
}

// meet notes that a source with credit is active in a later quarter of an hour than it got some of it.
func (r *record) meet(at uint32) {
	if r.flags&flagKnown == 0 && r.has() && at/knownAfter > r.at/knownAfter {
		r.flags |= flagKnown
	}
}

// has says whether there is credit for a message or login, or what a few weeks left of it.
func (r *record) has() bool { return r.accepted >= 0.1 || r.logins >= 0.1 }

// known says that mail of the source was accepted (for failed logins: that somebody logged in) in an earlier quarter of an hour.
func (r *record) known(k maillog.Kind) bool {
	credit := r.accepted
	if k == maillog.AuthFailure {
		credit = r.logins
	}
	return r.flags&flagKnown != 0 && credit >= 0.1
}

// forward decays r to the time at. It returns by how many seconds at lies before what r has already seen: such an
// event counts less instead. A record from the future (the wall clock was wrong) is brought back without a change.
func (s *Scorer) forward(r *record, at, now uint32) (late uint32) {
	if r.at > now+ahead {
		r.at = now
		if limit := now + uint32(s.cfg.Max/time.Second); r.until > limit {
			r.until = limit
		}
	}
	if at <= r.at {
		return r.at - at
	}
	dt := at - r.at
	r.at = at
	if r.offences > 0 || r.points > 0 || r.fails > 0 {
		f := s.decay.left(dt)
		// What is cancelled is used up as it fades: a message pays for one offence, once.
		spent := float64(min(r.offences, r.accepted)) * (1 - f)
		r.accepted = max(0, r.accepted-float32(spent))
		r.points, r.offences, r.fails = shrink(r.points, f), shrink(r.offences, f), shrink(r.fails, f)
	}
	if r.accepted > 0 || r.logins > 0 {
		f := s.fade.left(dt)
		r.accepted, r.logins = shrink(r.accepted, f), shrink(r.logins, f)
	}
	return 0
}

// shrink ends decay at a ten-thousandth: smaller numbers mean nothing and become slow.
func shrink(v float32, f float64) float32 {
	if v = float32(float64(v) * f); v < 1e-4 {
		return 0
	}
	return v
}

// raw is the score before credit, in points.
func (s *Scorer) raw(r *record) float64 {
	return float64(r.points) + s.cfg.Weights[maillog.AuthFailure]*float64(r.fails)
}

// parted is the score after credit, in points: what failed logins made, and the rest.
type parted struct{ mail, auth float64 }

func (p parted) sum() float64 { return p.mail + p.auth }

// score takes the credit off. c are the counts of the source, nil if they are not kept; w is what other nodes know of it, or
// nil.
func (s *Scorer) score(r *record, c *counts, w *away) (p parted) {
	trap := 0.0
	for i, why := range r.why {
		if why == uint8(block.Trap) {
			trap += r.part(i)
		}
	}
	credit := float64(r.accepted) + s.reach(c, r.at)
	points, n := float64(r.points)-trap, float64(r.offences)
	if w != nil && r.points > 0 {
		more := w.pointsAt(r.at, &s.decay)
		points, n, credit = points+more, n+more/perOffence, credit+w.credit()
	}
	if n > credit {
		p.mail = points * (n - credit) / n
	}
	p.mail += trap
	if r.fails > r.logins {
		p.auth = s.cfg.Weights[maillog.AuthFailure] * float64(r.fails-r.logins)
	}
	if p.auth > 0 && r.logins < 0.1 && bits.OnesCount64(r.names<<8) >= patientNames {
		p.auth = max(p.auth, s.cfg.Threshold)
	}
	if p.mail > 0 && r.accepted < 0.1 && (w == nil || w.credit() < 1) && c.patient() {
		p.mail = max(p.mail, s.cfg.Threshold)
	}
	return p
}

// patient says that a source tried very many recipients that there are not, however slowly, and reached none.
func (c *counts) patient() bool {
	if c == nil || c.reach.got > 0 || bits.OnesCount64(c.missed) < 44 { // about 75 of them
		return false
	}
	different := -64 * math.Log(max(1, float64(64-bits.OnesCount64(c.missed)))/64)
	days := max(1, float64(c.last-c.first)/86400)
	return different >= patientMail*days
}

// begin starts a burst: what was accepted in the last one is history now, and history counts in full.
func (s *Scorer) begin(slot int, r *record) {
	s.endBurst(r)
	r.names, r.points, r.offences, r.fails = 0, 0, 0, 0
	r.parts, r.why = [2]uint16{}, [2]uint8{}
	r.flags |= flagBurst
	if r.flags&flagHeld != 0 {
		r.flags &^= flagHeld
		r.until = 0
	}
	s.evidence.drop(slot, s.hash(s.keyAt(slot)))
}

func (s *Scorer) endBurst(r *record) {
	r.accepted = min(creditCap, r.accepted+(1-inBurst)*float32(max(0, int(r.acceptedNow)-trusted)))
	r.logins = min(creditCap, r.logins+(1-inBurst)*float32(r.loginsNow))
	r.acceptedNow, r.loginsNow = 0, 0
	r.flags &^= flagBurst
}

// credit takes in n accepted messages or logins.
func (s *Scorer) credit(r *record, e *maillog.Event, n float64, late uint32) {
	if r.flags&flagBurst != 0 && s.raw(r) < s.calm {
		s.endBurst(r)
	}
	total, now := &r.accepted, &r.acceptedNow
	if e.Kind == maillog.AuthSuccess {
		total, now = &r.logins, &r.loginsNow
	}
	worth := n * s.fade.left(late)
	if r.flags&flagBurst != 0 {
		was := float64(*now)
		*now = uint16(min(math.MaxUint16, was+n))
		worth *= inBurst
		if e.Kind == maillog.Delivered {
			full := min(n, max(0, trusted-was))
			worth *= 1 + full/n*(known-inBurst)/inBurst
			if !e.MTA.Undoes() {
				r.forgive(forgiven * n)
			}
		}
	}
	*total = float32(min(creditCap, float64(*total)+worth))
}

// undo takes a message off the credit of its source, and off the mail of the hour, that turned out not to be one (see
// maillog.Event.Undone).
func (s *Scorer) undo(e *maillog.Event, now time.Time) {
	at, nowSec := times(e, now)
	key := s.key(e.Source)
	s.share.drop(key, at, nowSec)
	slot, ok := s.lookup(key)
	if !ok {
		return
	}
	r, worth := s.rec(slot), 1.0
	if r.flags&flagBurst != 0 && r.acceptedNow > 0 {
		r.acceptedNow--
		if worth = inBurst; r.acceptedNow < trusted {
			worth = known
		}
	}
	r.accepted = float32(max(0, float64(r.accepted)-worth))
	s.mark(slot)
}

// note counts an event without weight in the evidence of a source that is already under suspicion: it helps to
// understand the verdict. Connections and the like are not even looked up.
func (s *Scorer) note(e *maillog.Event) {
	if evidenceSlot[e.Kind] == 0 {
		return
	}
	key := s.key(e.Source)
	if slot, ok := s.lookup(key); ok {
		if r := s.rec(slot); r.flags&flagBurst != 0 {
			s.evidence.add(slot, s.hash(key), e.Kind, min(max(e.Count, 1), maxCount), 0)
			s.mark(slot)
		}
	}
}

// reached says whether points are a verdict's worth. Ten offences of ten points are, although a second or two of decay
// between them takes a hair off the hundred: a person counts ten.
func (s *Scorer) reached(points float64) bool { return points >= s.cfg.Threshold*(1-1.0/128) }

// judge decides after an offence that raised the score from before.
func (s *Scorer) judge(slot int, key key, r *record, c *counts, k maillog.Kind, before float64, at, nowSec uint32, now time.Time, v *Verdict) bool {
	var w *away
	if len(s.away) > 0 {
		w = s.away[key]
	}
	p := s.score(r, c, w)
	mail, auth := p.mail, p.auth
	light := (mail+auth)*offending < s.cfg.Threshold
	if light && (s.reached(before*grazing) || !s.reached((mail+auth)*grazing) || r.has()) {
		return false
	}
	if at < nowSec && time.Duration(nowSec-at)*time.Second > s.cfg.HalfLife {
		return false // history
	}
	if over := !s.reached(before) && s.reached(mail+auth); (over || before*offending < s.cfg.Threshold) && !r.known(k) {
		how := offends
		if over {
			how = exceeds
		} else if light {
			how = grazes
		}
		if wide, ok := s.spreads(key, r, k, how, at, nowSec, now); ok {
			*v = wide
			v.Source = s.prefix(key)
			return true
		}
	}
	if !s.reached(mail + auth) {
		return false
	}
	cause := r.cause()
	if s.reached(auth) && auth >= mail || cause == block.NoCause {
		cause = block.AuthBrute
	}
	blocked := nowSec < r.until && r.flags&flagHeld == 0
	if blocked {
		// Only a login attack behind a block of the MX port alone is news.
		if r.flags&flagAll != 0 || k != maillog.AuthFailure || !s.reached(auth) {
			return false
		}
		cause = block.AuthBrute
	}
	if s.isSpared(key, cause.Scope(), nowSec) {
		if s.spared.add(key, nowSec) {
			s.tell(s.spareNotice(key, nowSec, nowSec))
		}
		return false
	}
	if s.covering(key, cause, nowSec) != nil {
		return false
	}
	if !blocked && cause != block.AuthBrute && s.cfg.Wait != nil && s.cfg.Wait(s.prefix(key), now) {
		return false
	}
	if !blocked {
		if s.holds(r, cause, mail+auth, nowSec) {
			return false
		}
		if r.flags&flagHeld == 0 && r.until != 0 && r.repeat < math.MaxUint8 {
			r.repeat++
		}
		r.flags &^= flagAll | flagHeld
		r.until = nowSec + uint32(s.term(int(r.repeat))/time.Second)
	}
	if cause.Scope() == block.ScopeAll {
		r.flags |= flagAll
	}
	*v = Verdict{
		Prefix: s.prefix(key), Source: s.prefix(key), Cause: cause, Scope: cause.Scope(), Since: now, Until: when(r.until), Repeat: int(r.repeat),
		Evidence: s.account(slot, key, r).Evidence,
	}
	return true
}

// holds counts the would-be block of a source and says whether it has to wait, because the source is a known sender
// and the fault may be ours. While it waits, r.until is the end of the wait.
func (s *Scorer) holds(r *record, c block.Cause, score float64, now uint32) bool {
	kind := maillog.None
	if c == block.AuthBrute {
		kind = maillog.AuthFailure
	}
	known := r.known(kind)
	if !known {
		s.count(c, false, now)
		return false
	}
	wait := uint32(holdFor)
	if r.flags&flagHeld != 0 {
		if now < r.until && (score < holdMost*s.cfg.Threshold || s.alarms.breakers[c].on(now)) {
			return true
		}
		if s.alarms.breakers[c].on(now) {
			wait = holdAgain
		} else if now < r.until+holdStale {
			return false
		}
	} else if r.until != 0 && r.repeat < math.MaxUint8 {
		r.repeat++ // the field is needed: what follows, now or later, is a repetition
	}
	s.count(c, true, now)
	if c == block.Trap && r.accepted < hardly && !s.alarms.breakers[c].on(now) {
		r.flags |= flagHeld // counted as a repetition above
		return false
	}
	r.flags |= flagHeld
	r.until = now + wait
	return true
}

// term is how long the block of the nth repetition lasts.
func (s *Scorer) term(repeat int) time.Duration {
	d := s.cfg.For
	for ; repeat > 0 && d < s.cfg.Max; repeat-- {
		d *= 2
	}
	return min(d, s.cfg.Max)
}

func when(sec uint32) time.Time {
	if sec == 0 {
		return time.Time{}
	}
	return time.Unix(int64(sec), 0).UTC()
}

func (s *Scorer) account(slot int, key key, r *record) Account {
	w := s.away[key]
	p := s.score(r, s.evidence.get(slot, s.hash(key)), w)
	mail, auth := p.mail, p.auth
	a := Account{Prefix: s.prefix(key), Raw: s.raw(r), Auth: auth, Cause: r.cause(), Until: when(r.until), Repeat: int(r.repeat)}
	if auth > mail {
		a.Cause = block.AuthBrute
	}
	if r.flags&flagHeld != 0 {
		a.Until, a.Held = time.Time{}, a.Until
	}
	e := &a.Evidence
	e.Score, e.Threshold = mail+auth, s.cfg.Threshold
	now := int(r.acceptedNow)
	e.Accepted = uint32(math.Round(max(float64(now), float64(r.accepted)-(known-1)*float64(min(now, trusted))+(1-inBurst)*float64(max(0, now-trusted)))))
	if e.Accepted == 0 && r.accepted >= 1e-3 {
		e.Accepted = 1 // used up, but there was some
	}
	e.Logins = uint32(math.Round(float64(r.logins) + (1-inBurst)*float64(r.loginsNow)))
	e.Names = r.distinct()
	if w != nil {
		e.Elsewhere = Elsewhere{math.Round(w.pointsAt(r.at, &s.decay)), uint32(w.credit())}
	}
	s.evidence.read(slot, s.hash(key), e)
	return a
}

// Lookup returns what is known about the source that a belongs to, decayed to now. It changes nothing.
func (s *Scorer) Lookup(a netip.Addr, now time.Time) (Account, bool) {
	if !a.IsValid() {
		return Account{}, false
	}
	key := s.key(a)
	slot, ok := s.lookup(key)
	if !ok {
		return Account{}, false
	}
	r := *s.rec(slot)
	sec := unix(now)
	s.forward(&r, sec, sec)
	acc := s.account(slot, key, &r)
	if w := s.covering(key, block.Dictionary, sec); w != nil {
		acc.Wide = w.prefix()
	}
	acc.Spared = s.sparedWords(a, sec)
	return acc, true
}

// Reset forgets the scores, the repetitions and the blocks of all sources that overlap p, as an unblock asks, and
// keeps what they have to their credit. It returns how many had something to forget. A p narrower than a source resets
// the source: its next offence would else block it again. Any p but that of a single source costs a walk over the table.
func (s *Scorer) Reset(p netip.Prefix) int {
	if !p.IsValid() {
		return 0
	}
	p = p.Masked()
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	s.resetAreas(p)
	width := 32
	if p.Addr().Is6() {
		width = s.cfg.IPv6Prefix
	}
	if p.Bits() >= width {
		if slot, ok := s.lookup(s.key(p.Addr())); ok && s.reset(slot) {
			return 1
		}
		return 0
	}
	n := 0
	for slot := range s.used {
		if p.Overlaps(s.prefix(s.keyAt(slot))) && s.reset(slot) {
			n++
		}
	}
	return n
}

// ResetMany is Reset of all the prefixes, at the cost of one walk over the table.
func (s *Scorer) ResetMany(list []netip.Prefix) (n int) {
	wide := map[netip.Prefix]bool{}
	var lengths [2][129]bool
	for _, p := range list {
		width, family := 32, 0
		if p.Addr().Is6() {
			width, family = s.cfg.IPv6Prefix, 1
		}
		if !p.IsValid() || p.Bits() >= width || p.Addr().Is4In6() {
			n += s.Reset(p)
			continue
		}
		p = p.Masked()
		if !wide[p] {
			s.resetAreas(p)
			wide[p], lengths[family][p.Bits()] = true, true
		}
	}
	if len(wide) == 0 {
		return n
	}
	for slot := range s.used {
		p := s.prefix(s.keyAt(slot))
		family := 0
		if p.Addr().Is6() {
			family = 1
		}
		for bits, in := range lengths[family][:p.Bits()+1] {
			if !in {
				continue
			}
			if w, err := p.Addr().Prefix(bits); err == nil && wide[w] {
				if s.reset(slot) {
					n++
				}
				break
			}
		}
	}
	return n
}

func (s *Scorer) reset(slot int) bool {
	r := s.rec(slot)
	if len(s.away) > 0 {
		delete(s.away, s.keyAt(slot))
	}
	if r.points == 0 && r.fails == 0 && r.until == 0 && r.repeat == 0 {
		return false
	}
	s.begin(slot, r)
	r.flags &^= flagBurst | flagAll
	r.until, r.repeat = 0, 0
	s.mark(slot)
	return true
}

// nameBits is how many bits of names stand for names that failed. The upper 8 count what came quickly in a row: failures
// of names that failed before, or without a name, or unknown recipients that were tried before.
const nameBits = 56

// inRow counts n more and returns how many were in the row before them. A pause ends a row.
func (r *record) inRow(n int, gap, pause int64) int {
	run := int(r.names >> nameBits)
	if gap >= pause {
		run = 0
	}
	r.setRow(run + n)
	return run
}

func (r *record) setRow(n int) {
	r.names = r.names<<8>>8 | uint64(min(n, math.MaxUint8))<<nameBits
}

// nameBit is the bit of a login name.
func nameBit(user uint64) uint64 {
	hi, _ := bits.Mul64(user, nameBits)
	return 1 << hi
}

// guess returns how much n failures of one name count, gap seconds after what the source did before.
func (r *record) guess(user uint64, n int, gap int64) (worth float64) {
	if user == 0 {
		run := int(r.names >> nameBits)
		if gap > quick {
			run = 0
		}
		slow := min(n, max(0, 3-run))
		r.setRow(run + n)
		each := noName
		if gap >= pause {
			each = noNamePause
		}
		return float64(slow)*each + float64(n-slow)*noNameRun
	}
	if bit := nameBit(user); r.names&bit == 0 {
		worth = 1
		if bits.OnesCount64(r.names<<8) < firstNames {
			worth = firstName
		}
		r.names |= bit
		if n--; n == 0 {
			return worth
		}
	}
	names := min(bits.OnesCount64(r.names<<8), maxPhones) // each has its own
	few := min(n, max(0, inARow*names-r.inRow(n, gap, pause)))
	return worth + float64(few)*sameName + float64(n-few)*sameNameRun
}

// mistyped takes a name back that failed and then logged in.
func (r *record) mistyped(user uint64) {
	bit := nameBit(user)
	if user == 0 || r.names<<8>>8&bit == 0 {
		return
	}
	worth := float32(1)
	if bits.OnesCount64(r.names<<8) <= firstNames {
		worth = firstName
	}
	r.fails = max(0, r.fails-worth)
	r.names &^= bit
}

// distinct estimates the number of names from how many of the 56 bits are still free (linear counting).
func (r *record) distinct() int {
	free := 56 - bits.OnesCount64(r.names<<8)
	if free == 0 {
		free = 1
	}
	return int(math.Round(-56 * math.Log(float64(free)/56)))
}

// offend adds points of a cause. Of the causes only the two largest are kept, each with its share of the points: a
// third one wears both down (Misra and Gries), so whatever made more than a third of the score is among them.
func (r *record) offend(c block.Cause, points, n float64) {
	total := float64(r.points)
	part := [2]float64{r.part(0), r.part(1)}
	switch {
	case r.why[0] == uint8(c) && r.why[1] == 0: // nothing else: all of it
		r.points = float32(min(total+points, 1e9))
		r.offences = float32(min(float64(r.offences)+n, 1e9))
		r.parts[0] = math.MaxUint16
		return
	case r.why[0] == uint8(c):
		part[0] += points
	case r.why[1] == uint8(c):
		part[1] += points
	case r.why[0] == 0:
		r.why[0], part[0] = uint8(c), points
	case r.why[1] == 0:
		r.why[1], part[1] = uint8(c), points
	case c == block.Trap, r.why[0] == uint8(block.Trap), r.why[1] == uint8(block.Trap):
		// A trap hit keeps its place and its share: what is cancelled and what is not must not be mixed up.
		i := 0
		if c == block.Trap && part[1] < part[0] || r.why[0] == uint8(block.Trap) {
			i = 1
		}
		if worn := min(points, part[i]); c != block.Trap {
			part[i] -= worn
			points -= worn
			total += worn
		}
		if points > 0 {
			r.why[i], part[i] = uint8(c), points
		}
	default:
		worn := min(points, part[0], part[1])
		part[0], part[1] = part[0]-worn, part[1]-worn
		if rest := points - worn; rest > 0 {
			i := 0
			if part[1] < part[0] {
				i = 1
			}
			r.why[i], part[i] = uint8(c), rest
		}
	}
	r.points = float32(min(total+points, 1e9))
	r.offences = float32(min(float64(r.offences)+n, 1e9))
	r.share(part)
}

// forgive takes up to points of protocol abuse and flood off.
func (r *record) forgive(points float64) {
	part := [2]float64{r.part(0), r.part(1)}
	for i := range part {
		if c := block.Cause(r.why[i]); c != block.ProtocolAbuse && c != block.Flood {
			continue
		}
		off := min(points, part[i])
		points -= off
		part[i] -= off
		if r.points > 0 {
			left := (float64(r.points) - off) / float64(r.points)
			if !(left > 1e-6) {
				left = 0
			}
			r.points, r.offences = shrink(r.points, left), shrink(r.offences, left)
		}
	}
	r.share(part)
}

func (r *record) share(part [2]float64) {
	for i := range part {
		q := 0.0
		if r.points > 0 {
			q = min(1, part[i]/float64(r.points))
		}
		r.parts[i] = uint16(q * math.MaxUint16)
	}
}

// cause returns the largest contributor beside failed logins.
func (r *record) cause() block.Cause {
	if r.points == 0 {
		return block.NoCause
	}
	if r.parts[1] > r.parts[0] {
		return block.Cause(r.why[1])
	}
	return block.Cause(r.why[0])
}
