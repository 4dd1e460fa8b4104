//go:build linux

package lab

import (
	"context"
	"encoding/base64"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Talk is how a client talks. The texts go out literally, so that they can
// hold anything: what reaches the server's log is then the server's doing.
// Put no CR LF into them unless further commands are meant.
type Talk struct {
	Helo    string        // argument of EHLO; "client.example.net"
	From    string        // argument of MAIL FROM:, brackets included; "<sender@example.net>"
	Connect time.Duration // to connect; 2 s
	Reply   time.Duration // to wait for each reply; 10 s
	TLS     bool          // STARTTLS before the first EHLO that counts
	Persist bool          // go on after a connect or a reply timed out; else that ends it
}

func (t Talk) withDefaults() Talk {
	if t.Helo == "" {
		t.Helo = "client.example.net"
	}
	if t.From == "" {
		t.From = "<sender@example.net>"
	}
	if t.Connect == 0 {
		t.Connect = 2 * time.Second
	}
	if t.Reply == 0 {
		t.Reply = 10 * time.Second
	}
	return t
}

// Result is what one client saw, or several (Sum).
type Result struct {
	Sessions        int // connections that were greeted with 220
	Refused         int // connections greeted with another code, or ended before the greeting
	Accepted        int // recipients, messages or logins answered 2xx, by generator
	Rejected        int // the same answered 4xx or 5xx
	Ended           int // sessions that the server ended early (421, or it closed)
	Silent          int // sessions in which a reply never came: packets dropped in mid-session
	ConnectTimeouts int // SYNs that nobody answered
	ConnectErrors   int // connects that failed otherwise (refused, unreachable)

	FirstOffence time.Time // when the first refusal arrived, or the first early talk was sent
	FirstTimeout time.Time // when the first thing was sent that was never answered (connect or command)
	Elapsed      time.Duration
	Last         string // last reply or error, for people
}

// Blocked says whether packets went unanswered. So they do when a server is
// overrun: with more clients than it has processes, its queue of finished
// handshakes (100 for Postfix) is full and the kernel drops SYNs.
func (r Result) Blocked() bool { return r.ConnectTimeouts+r.Silent > 0 }

// Sum adds counts, and keeps the earliest times and the longest duration.
func Sum(all []Result) Result {
	var t Result
	for _, r := range all {
		t.Sessions += r.Sessions
		t.Refused += r.Refused
		t.Accepted += r.Accepted
		t.Rejected += r.Rejected
		t.Ended += r.Ended
		t.Silent += r.Silent
		t.ConnectTimeouts += r.ConnectTimeouts
		t.ConnectErrors += r.ConnectErrors
		t.FirstOffence = earlier(t.FirstOffence, r.FirstOffence)
		t.FirstTimeout = earlier(t.FirstTimeout, r.FirstTimeout)
		t.Elapsed = max(t.Elapsed, r.Elapsed)
		if r.Last != "" {
			t.Last = r.Last
		}
	}
	return t
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// client is one address at work.
type client struct {
	Result
	host  *Host
	from  netip.Addr
	to    netip.AddrPort
	talk  Talk
	began time.Time
	sent  time.Time // of the last thing sent
}

func newClient(h *Host, from netip.Addr, to netip.AddrPort, t Talk) *client {
	return &client{host: h, from: from, to: to, talk: t.withDefaults(), began: time.Now()}
}

func (c *client) result() Result {
	c.Elapsed = time.Since(c.began)
	return c.Result
}

// more says whether there is a point in another session.
func (c *client) more(ctx context.Context) bool {
	return !over(ctx) && (c.talk.Persist || !c.Blocked())
}

func (c *client) offend() {
	if c.FirstOffence.IsZero() {
		c.FirstOffence = time.Now()
	}
}

// connect opens a session, or counts why not and returns nil.
func (c *client) connect(ctx context.Context) *session {
	dialCtx, cancel := context.WithTimeout(ctx, c.talk.Connect)
	defer cancel()
	c.sent = time.Now()
	conn, err := c.host.Dial(dialCtx, c.from, c.to)
	switch {
	case err == nil:
		return attach(ctx, conn, c.talk.Reply)
	case over(ctx): // told to stop: says nothing about the server
	case timedOut(err):
		c.ConnectTimeouts++
		c.FirstTimeout = earlier(c.FirstTimeout, c.sent)
	default:
		c.ConnectErrors++
	}
	c.Last = err.Error()
	return nil
}

// greeted waits for the 220; false means that the session is over and counted.
func (c *client) greeted(ctx context.Context, s *session) bool {
	c.sent = time.Now()
	code, text, err := s.read()
	switch {
	case err != nil:
		if !timedOut(err) && !over(ctx) {
			c.Refused++
			c.Last = err.Error()
			s.close()
			return false
		}
		c.lost(ctx, s, err)
		return false
	case code != 220:
		c.Last = fmt.Sprint(code, " ", text)
		c.Refused++
		s.close()
		return false
	}
	if c.talk.TLS {
		if code := c.say(ctx, s, "EHLO "+c.talk.Helo); code == 0 {
			return false
		}
		if err := s.startTLS(); err != nil {
			c.lost(ctx, s, err)
			return false
		}
	}
	c.Sessions++
	return true
}

// lost ends a session that failed with err.
func (c *client) lost(ctx context.Context, s *session, err error) {
	switch {
	case over(ctx):
	case timedOut(err):
		c.Silent++
		c.FirstTimeout = earlier(c.FirstTimeout, c.sent)
	default:
		c.Ended++
	}
	c.Last = err.Error()
	s.close()
}

// say sends a command. Code 0 means that the session is over and counted.
func (c *client) say(ctx context.Context, s *session, line string) int {
	c.sent = time.Now()
	code, text, err := s.command(line)
	if err != nil {
		c.lost(ctx, s, err)
		return 0
	}
	c.Last = fmt.Sprint(code, " ", text)
	if code == 421 {
		c.Ended++
		s.close()
		return 0
	}
	return code
}

// count books a reply to the thing the generator is about.
func (c *client) count(code int) {
	switch code / 100 {
	case 2, 3:
		c.Accepted++
	case 4, 5:
		c.Rejected++
		c.offend()
	}
}

// DictionaryOptions: Recipients unknown recipients in all (20), PerSession of
// them in each session (5). Rcpt, if set, gives the arguments of RCPT TO:
// literally, again and again; else they are made up names at Domain
// (example.org).
type DictionaryOptions struct {
	Talk
	Recipients int
	PerSession int
	Domain     string
	Rcpt       []string
	Pause      time.Duration // between sessions
}

// Dictionary guesses recipients. Accepted and Rejected count recipients.
func Dictionary(ctx context.Context, h *Host, from netip.Addr, to netip.AddrPort, o DictionaryOptions) Result {
	if o.Recipients == 0 {
		o.Recipients = 20
	}
	if o.PerSession == 0 {
		o.PerSession = 5
	}
	if o.Domain == "" {
		o.Domain = "example.org"
	}
	c := newClient(h, from, to, o.Talk)
	rcpt := func(i int) string {
		if len(o.Rcpt) > 0 {
			return o.Rcpt[i%len(o.Rcpt)]
		}
		return fmt.Sprintf("<guess%d.%d@%s>", i, c.began.UnixNano()%1e6, o.Domain)
	}
	// One session costs at least one guess, so this ends even if every
	// session is refused at once.
	for tried := 0; tried < o.Recipients && c.more(ctx); {
		n := c.guess(ctx, min(o.PerSession, o.Recipients-tried), func(i int) string { return rcpt(tried + i) })
		tried += max(n, 1)
		pause(ctx, o.Pause)
	}
	return c.result()
}

// guess tries n recipients in one session and returns how many were answered.
func (c *client) guess(ctx context.Context, n int, rcpt func(int) string) int {
	s := c.connect(ctx)
	if s == nil || !c.greeted(ctx, s) {
		return 0
	}
	if c.say(ctx, s, "EHLO "+c.talk.Helo) == 0 || c.say(ctx, s, "MAIL FROM:"+c.talk.From) == 0 {
		return 0
	}
	for i := range n {
		code := c.say(ctx, s, "RCPT TO:"+rcpt(i))
		if code == 0 {
			return i
		}
		c.count(code)
	}
	s.quit()
	return n
}

func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// RelayOptions: Attempts sessions (1) with one foreign recipient each, Rcpt
// literally (<victim@example.com>).
type RelayOptions struct {
	Talk
	Attempts int
	Rcpt     string
}

// RelayProbe asks whether the server is an open relay. Accepted and Rejected
// count recipients.
func RelayProbe(ctx context.Context, h *Host, from netip.Addr, to netip.AddrPort, o RelayOptions) Result {
	if o.Rcpt == "" {
		o.Rcpt = "<victim@example.com>"
	}
	return Dictionary(ctx, h, from, to, DictionaryOptions{
		Talk: o.Talk, Recipients: max(o.Attempts, 1), PerSession: 1, Rcpt: []string{o.Rcpt},
	})
}

// SASLOptions: Attempts logins (10), PerSession (3) of them in each session,
// with the names of Users in turn (literally; guess1@example.org and so on if
// empty) and Password ("wrong"). Mechanism is LOGIN (the default) or PLAIN.
type SASLOptions struct {
	Talk
	Attempts   int
	PerSession int
	Users      []string
	Password   string
	Mechanism  string
	Pause      time.Duration // between sessions
}

// SASLBrute tries to log in. Accepted counts good logins, Rejected bad ones. A
// port without AUTH rejects every attempt too (503).
func SASLBrute(ctx context.Context, h *Host, from netip.Addr, to netip.AddrPort, o SASLOptions) Result {
	o = o.withDefaults()
	c := newClient(h, from, to, o.Talk)
	for tried := 0; tried < o.Attempts && c.more(ctx); {
		n := c.logins(ctx, min(o.PerSession, o.Attempts-tried), o, func(i int) string { return o.user(tried + i) })
		tried += max(n, 1)
		pause(ctx, o.Pause)
	}
	return c.result()
}

func (o SASLOptions) withDefaults() SASLOptions {
	if o.Attempts == 0 {
		o.Attempts = 10
	}
	if o.PerSession == 0 {
		o.PerSession = 3
	}
	if o.Password == "" {
		o.Password = "wrong"
	}
	return o
}

func (o SASLOptions) user(i int) string {
	if len(o.Users) > 0 {
		return o.Users[i%len(o.Users)]
	}
	return fmt.Sprintf("guess%d@example.org", i+1)
}

// logins tries up to n names in one session and returns how many were answered.
// A good login ends the session: a second AUTH is not allowed after it.
func (c *client) logins(ctx context.Context, n int, o SASLOptions, user func(int) string) int {
	s := c.connect(ctx)
	if s == nil || !c.greeted(ctx, s) {
		return 0
	}
	if c.say(ctx, s, "EHLO "+c.talk.Helo) == 0 {
		return 0
	}
	for i := range n {
		code := c.login(ctx, s, o.Mechanism, user(i), o.Password)
		if code == 0 {
			return i
		}
		c.count(code)
		if code == 235 {
			s.quit()
			return i + 1
		}
	}
	s.quit()
	return n
}

// login does one AUTH and returns the last code.
func (c *client) login(ctx context.Context, s *session, mechanism, user, password string) int {
	b64 := base64.StdEncoding.EncodeToString
	if strings.EqualFold(mechanism, "PLAIN") {
		return c.say(ctx, s, "AUTH PLAIN "+b64([]byte("\x00"+user+"\x00"+password)))
	}
	for _, line := range []string{"AUTH LOGIN", b64([]byte(user))} {
		if code := c.say(ctx, s, line); code != 334 {
			return code
		}
	}
	return c.say(ctx, s, b64([]byte(password)))
}

// PregreetOptions: Attempts sessions (1) that send Text at once ("EHLO HELO\r\n").
type PregreetOptions struct {
	Talk
	Attempts int
	Text     string
}

// Pregreet talks before the server has greeted, and then tries one recipient
// (user1@example.org), which Accepted and Rejected count: a plain smtpd does not
// mind the haste, a postscreen that enforces does.
func Pregreet(ctx context.Context, h *Host, from netip.Addr, to netip.AddrPort, o PregreetOptions) Result {
	if o.Text == "" {
		o.Text = "EHLO " + o.withDefaults().Helo + "\r\n"
	}
	c := newClient(h, from, to, o.Talk)
	for range max(o.Attempts, 1) {
		if !c.more(ctx) {
			break
		}
		c.pregreet(ctx, o.Text)
	}
	return c.result()
}

func (c *client) pregreet(ctx context.Context, text string) {
	s := c.connect(ctx)
	if s == nil {
		return
	}
	c.sent = time.Now()
	if err := s.write(text); err != nil {
		c.lost(ctx, s, err)
		return
	}
	c.offend()
	if !c.greeted(ctx, s) {
		return
	}
	for range strings.Count(text, "\n") {
		if _, _, err := s.read(); err != nil {
			c.lost(ctx, s, err)
			return
		}
	}
	if c.say(ctx, s, "MAIL FROM:"+c.talk.From) == 0 {
		return
	}
	if code := c.say(ctx, s, "RCPT TO:<"+userAddress(1)+">"); code != 0 {
		c.count(code)
		s.quit()
	}
}

// HonestOptions: Messages (1) one after another, Interval apart, each to all of
// To (user1@example.org), addresses without brackets; Unknown recipients that do
// not exist are tried in each as well. User and Password log in first, for 587.
// Body is the message, literally up to dot stuffing.
type HonestOptions struct {
	Talk
	Messages int
	Interval time.Duration
	To       []string
	Unknown  int
	User     string
	Password string
	Body     string
}

// HonestResult counts messages in Accepted and Rejected.
type HonestResult struct {
	Result
	Latencies []time.Duration // of each accepted message: from the connect to the reply to its last dot
}

// Quantile of the latencies, 0 to 1; 0 if there are none.
func (r HonestResult) Quantile(q float64) time.Duration {
	if len(r.Latencies) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(r.Latencies))
	i := int(math.Ceil(q*float64(len(s)))) - 1
	return s[min(max(i, 0), len(s)-1)]
}

// Honest delivers mail as a well-behaved sender does, one session per message.
// A message is Accepted when the server took it, Rejected when it refused the
// sender, the login, all recipients or the message; a message that never got
// so far is in one of the other counts.
func Honest(ctx context.Context, h *Host, from netip.Addr, to netip.AddrPort, o HonestOptions) HonestResult {
	if len(o.To) == 0 {
		o.To = []string{userAddress(1)}
	}
	c := newClient(h, from, to, o.Talk)
	var r HonestResult
	for i := range max(o.Messages, 1) {
		if i > 0 {
			pause(ctx, o.Interval)
		}
		if !c.more(ctx) {
			break
		}
		if took := c.deliver(ctx, o, i); took > 0 {
			r.Latencies = append(r.Latencies, took)
		}
	}
	r.Result = c.result()
	return r
}

// deliver sends one message and returns how long that took, 0 if it was not taken.
func (c *client) deliver(ctx context.Context, o HonestOptions, n int) time.Duration {
	began := time.Now()
	s := c.connect(ctx)
	if s == nil || !c.greeted(ctx, s) {
		return 0
	}
	if c.say(ctx, s, "EHLO "+c.talk.Helo) == 0 {
		return 0
	}
	// refused books an answer that ends the message. 0 is booked already.
	refused := func(code int) time.Duration {
		if code != 0 {
			c.count(code)
			s.quit()
		}
		return 0
	}
	if o.User != "" {
		if code := c.login(ctx, s, "PLAIN", o.User, o.Password); code != 235 {
			return refused(code)
		}
	}
	if code := c.say(ctx, s, "MAIL FROM:"+c.talk.From); code/100 != 2 {
		return refused(code)
	}
	rcpt := slices.Clone(o.To)
	for i := range o.Unknown {
		rcpt = append(rcpt, fmt.Sprintf("left%d.%d@example.org", n, i))
	}
	taken, last := 0, 0
	for _, to := range rcpt {
		if last = c.say(ctx, s, "RCPT TO:<"+to+">"); last == 0 {
			return 0
		}
		if last/100 == 2 {
			taken++
		}
	}
	if taken == 0 {
		return refused(last)
	}
	if code := c.say(ctx, s, "DATA"); code != 354 {
		return refused(code)
	}
	code := c.say(ctx, s, message(c.talk, o, n)+".")
	if code/100 != 2 {
		return refused(code)
	}
	took := time.Since(began)
	c.Accepted++
	s.quit()
	return took
}

// message ends with CR LF.
func message(t Talk, o HonestOptions, n int) string {
	body := o.Body
	if body == "" {
		body = fmt.Sprintf("From: %s\r\nTo: <%s>\r\nSubject: message %d\r\nMessage-ID: <%d.%d@example.net>\r\n\r\nHello.\r\n",
			t.From, o.To[0], n+1, n+1, time.Now().UnixNano())
	}
	if !strings.HasSuffix(body, "\r\n") {
		body += "\r\n"
	}
	if strings.HasPrefix(body, ".") {
		body = "." + body
	}
	return strings.ReplaceAll(body, "\r\n.", "\r\n..")
}

// ConnectTimesOut says whether a connection attempt gets no answer at all for
// d: neither a handshake nor a refusal.
func ConnectTimesOut(ctx context.Context, h *Host, from netip.Addr, to netip.AddrPort, d time.Duration) bool {
	dialCtx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	conn, err := h.Dial(dialCtx, from, to)
	if err == nil {
		conn.Close()
		return false
	}
	return !over(ctx) && timedOut(err)
}

// Swarm runs fn once for every source, at most parallel of them at a time, and
// returns the results in the order of sources. Those that ctx kept from
// starting are zero.
func Swarm(ctx context.Context, sources []netip.Addr, parallel int, fn func(context.Context, netip.Addr) Result) []Result {
	out := make([]Result, len(sources))
	next := make(chan int)
	var wg sync.WaitGroup
	for range min(max(parallel, 1), len(sources)) {
		wg.Go(func() {
			for i := range next {
				out[i] = fn(ctx, sources[i])
			}
		})
	}
	for i := range sources {
		if over(ctx) {
			break
		}
		next <- i
	}
	close(next)
	wg.Wait()
	return out
}
