package maillog

import (
	"bytes"
	"time"
)

// stampKind is the shape of a line's time stamp.
type stampKind uint8

const (
	stampNone  stampKind = iota // no stamp (RFC 5424 "-"): the time is ref
	stampBSD                    // Mmm dd HH:MM:SS
	stampISO                    // YYYY-MM-DDTHH:MM:SS, or with a blank for the T and one before the zone
	stampUnix                   // seconds since 1970
	stampTAI                    // TAI64N: @ and 24 hex digits
	stampMicro                  // microseconds since 1970
)

// A header is a line taken apart. The stamp is converted only if the message turns out to matter.
type header struct {
	kind    stampKind
	stamp   []byte
	host    []byte // as syslogd has it; empty where it says none
	tag     []byte // postfix/submission/smtpd
	pid     []byte // may be empty
	msg     []byte
	count   int       // 1, or N of "message repeated N times"
	mta     MTA       // whose own file this shape is; Auto: ask the tag
	cut     bool      // a journal's message of which blanks were taken, or more
	part    bool      // the first part of a line that Exim split for syslog: the end is missing
	seen    bool      // host and tag are those of lines before: see quick
	from    uint64    // hash of the host, if seen
	role    role      // what the tag says, if seen
	process uint8     // a few bits of tag and pid, if seen
	again   bool      // "last message repeated N times": no tag, no message
	ref     time.Time // when the line was read
	at      time.Time // when it was written, if that is known
	by      reporter  // who says that a login failed
	key     uint32    // what tells two lines of one reporter apart, see logins

	opens  opening // what a message of Exim's begins with, if quickExim has looked
	opened int     // how long that is
}

// split finds tag, process id and message of a line. Everything up to the message is written by syslogd and the MTA,
// so blanks separate reliably. j is where the text of a journal record may be unpacked to.
func (h *header) split(b []byte, j *record) bool {
	for len(b) > 0 && (b[len(b)-1] == '\n' || b[len(b)-1] == '\r') {
		b = b[:len(b)-1]
	}
	if len(b) < 8 {
		return false
	}
	if b[0] == '<' { // <PRI>
		i := 1
		for i < len(b) && i <= 3 && isDigit(b[i]) {
			i++
		}
		if i == 1 || i == len(b) || b[i] != '>' {
			return false
		}
		b = b[i+1:]
		if bytes.HasPrefix(b, []byte("1 ")) {
			return h.rfc5424(b[2:])
		}
		if len(b) < 8 {
			return false
		}
	}
	switch c := b[0]; {
	case isUpper(c):
		// "Mmm dd HH:MM:SS", and ".ffffff" from journalctl -o short-precise
		if len(b) < 17 || b[3] != ' ' || b[6] != ' ' || b[9] != ':' || b[12] != ':' {
			return h.rare(b, j)
		}
		n := 15
		if b[n] == '.' {
			n++
			for n < len(b) && isDigit(b[n]) {
				n++
			}
		}
		h.kind, h.stamp, b = stampBSD, b[:n], b[n:]
		if len(b) > 1 && b[0] == ' ' && dovecotOwn(b[1:]) {
			h.mta, h.msg, h.count = Dovecot, b[1:], 1
			return true
		}
	case isDigit(c):
		if b[4] == '-' && len(b) > 19 && b[10] == ' ' {
			return h.ownFile(b)
		}
		i := bytes.IndexByte(b, ' ')
		if i < 10 || i > 40 {
			return false
		}
		h.kind, h.stamp, b = stampUnix, b[:i], b[i:]
		if h.stamp[4] == '-' {
			h.kind = stampISO
		}
	case c == '@':
		return h.tai64n(b)
	case c == '{':
		return j.split(b, h)
	case c == 'd':
		return h.dovecot1(b)
	default:
		return h.rare(b, j)
	}
	if len(b) < 4 || b[0] != ' ' {
		return false
	}
	return h.hostAndTag(b[1:])
}

// hostAndTag reads what follows the stamp of a syslog line.
func (h *header) hostAndTag(b []byte) bool {
	if len(b) > 3 && b[0] == '<' { // FreeBSD syslogd -v: <facility.level>
		i := bytes.IndexByte(b, '>')
		if i < 0 || i > 24 || i+2 >= len(b) || b[i+1] != ' ' {
			return false
		}
		b = b[i+2:]
	}
	// "host tag:", or only "tag:" on a local syslog socket.
	word, rest, ok := cutSpace(b)
	if !ok {
		return false
	}
	if !endsTag(word) {
		h.host = word
		if n, ok := lastRepeated(rest); ok {
			h.count, h.again = n, true
			return true
		}
		if word, rest, ok = cutSpace(rest); !ok || word[len(word)-1] != ':' {
			return false
		}
	}
	return h.tagged(word, rest)
}

// tagged takes "tag:" or "tag[pid]:" apart.
func (h *header) tagged(word, rest []byte) bool {
	word = word[:len(word)-1]
	if n := len(word); n > 0 && word[n-1] == ']' {
		i := bytes.IndexByte(word, '[')
		if i <= 0 {
			return false
		}
		word, h.pid = word[:i], word[i+1:n-1]
	}
	h.tag, h.msg = word, rest
	if len(rest) > 0 && (rest[0] == ' ' || rest[0] == '[') {
		h.msg = afterTag(rest)
	}
	h.repeat()
	return true
}

// endsTag says that a word that may be a host or a tag is a tag. No host ends like this; an IPv6 text may end in a
// colon, but has no slash.
func endsTag(w []byte) bool {
	n := len(w)
	return n > 2 && w[n-1] == ':' && (w[n-2] == ']' || bytes.IndexByte(w, '/') > 0)
}

func cutSpace(b []byte) (word, rest []byte, ok bool) {
	i := bytes.IndexByte(b, ' ')
	if i <= 0 {
		return nil, nil, false
	}
	return b[:i], b[i+1:], true
}

// rfc5424 reads "TS host app procid msgid sd msg".
func (h *header) rfc5424(b []byte) bool {
	var f [5][]byte
	for i := range f {
		var ok bool
		if f[i], b, ok = cutSpace(b); !ok {
			return false
		}
	}
	h.stamp, h.host, h.tag, h.pid, h.kind = f[0], f[1], f[2], f[3], stampISO
	if len(h.stamp) == 1 && h.stamp[0] == '-' {
		h.kind = stampNone
	}
	switch {
	case len(b) == 0:
		return false
	case b[0] == '-':
		b = b[1:]
	case b[0] == '[':
		for len(b) > 0 && b[0] == '[' {
			i, quoted := 1, false
			for ; i < len(b); i++ {
				if c := b[i]; c == '"' {
					quoted = !quoted
				} else if c == '\\' && quoted {
					i++
				} else if c == ']' && !quoted {
					break
				}
			}
			if i >= len(b) {
				return false
			}
			b = b[i+1:]
		}
	default:
		return false
	}
	if len(b) < 2 || b[0] != ' ' {
		return false
	}
	b = bytes.TrimPrefix(b[1:], []byte("\xef\xbb\xbf"))
	if len(b) > 0 && b[0] == ' ' { // rsyslog keeps the blank that followed the tag
		b = b[1:]
	}
	h.msg = b
	h.repeat()
	return true
}

// ownFile reads "YYYY-MM-DD HH:MM:SS[.mmm][ +zzzz] ...", as Exim writes its log files and Dovecot may (log_timestamp).
func (h *header) ownFile(b []byte) bool {
	n := stampLen(b)
	if n == 0 {
		return false
	}
	h.kind, h.stamp, h.count = stampISO, b[:n], 1
	b = b[n+1:]
	if dovecotOwn(b) {
		h.mta, h.msg = Dovecot, b
		return true
	}
	if hostAndTag(b) {
		return h.hostAndTag(b)
	}
	// No tag says that this is Exim. Its messages are: each begins with words that no other program here begins with.
	h.mta, h.msg = Exim, h.eximPid(b)
	return true
}

// stampLen is the length of an ISO 8601 stamp with blanks, which must be followed by a blank.
func stampLen(b []byte) int {
	if len(b) < 20 || b[4] != '-' || b[7] != '-' || b[10] != ' ' || b[13] != ':' || b[16] != ':' {
		return 0
	}
	const third, fifth, sixth, eighth = 0x80 << 16, 0x80 << 32, 0x80 << 40, 0x80 << 56 // all others are digits
	if others(load8(b, 0)) != fifth|eighth || others(load8(b, 8)) != third|sixth || others(load8(b, 11)) != third|sixth {
		return 0
	}
	n := 19
	for n < len(b) && n < 30 && (b[n] == '.' || isDigit(b[n])) {
		n++
	}
	n += zoneLen(b[n:])
	if n >= len(b) || b[n] != ' ' {
		return 0
	}
	return n
}

// eximPid skips "[pid] " (log_selector +pid).
func (h *header) eximPid(b []byte) []byte {
	if len(b) < 4 || b[0] != '[' {
		return b
	}
	n := 1
	for n < len(b) && n < 12 && isDigit(b[n]) {
		n++
	}
	if n == 1 || n+1 >= len(b) || b[n] != ']' || b[n+1] != ' ' {
		return b
	}
	h.pid = b[1:n]
	return b[n+2:]
}

// tai64n reads "@4000000065e2f3a01234abcd service: ...", the stamp of multilog and svlogd.
func (h *header) tai64n(b []byte) bool {
	if len(b) < 34 || b[25] != ' ' {
		return false
	}
	for _, c := range b[1:25] {
		if !isHex(c) {
			return false
		}
	}
	h.kind, h.stamp, h.count = stampTAI, b[:25], 1
	b = b[26:]
	if dovecotOwn(b) {
		h.mta, h.msg = Dovecot, b
		return true
	}
	word, rest, ok := cutSpace(b)
	return ok && word[len(word)-1] == ':' && h.tagged(word, rest)
}

// dovecot1 reads "dovecot: Mmm dd HH:MM:SS Info: service: ...", the own file of Dovecot 1.
func (h *header) dovecot1(b []byte) bool {
	b, ok := cut(b, "dovecot: ")
	if !ok || len(b) < 24 {
		return false
	}
	n := 15
	h.kind = stampBSD
	if isDigit(b[0]) {
		n = stampLen(b)
		h.kind = stampISO
	}
	if n == 0 || b[n] != ' ' {
		return false
	}
	h.stamp, b = b[:n], b[n+1:]
	if b, ok = level(b); !ok || !dovecotService(b) {
		return false
	}
	h.mta, h.msg, h.count = Dovecot, b, 1
	return true
}

// lastRepeated reads "last message repeated N times", which the older syslogds write.
func lastRepeated(b []byte) (int, bool) {
	b, ok := cut(b, "last message repeated ")
	if !ok {
		return 0, false
	}
	n, i := 0, 0
	for i < len(b) && isDigit(b[i]) && i < 7 {
		n = n*10 + int(b[i]-'0')
		i++
	}
	rest := string(b[i:])
	return n, n > 0 && (rest == " times" || rest == " time")
}

// repeat unpacks rsyslog's "message repeated N times: [ msg]".
func (h *header) repeat() {
	h.count = 1
	b, ok := bytes.CutPrefix(h.msg, []byte("message repeated "))
	if !ok {
		return
	}
	n, i := 0, 0
	for i < len(b) && isDigit(b[i]) && i < 7 {
		n = n*10 + int(b[i]-'0')
		i++
	}
	b, ok = bytes.CutPrefix(b[i:], []byte(" times: [ "))
	if !ok || n == 0 || len(b) == 0 || b[len(b)-1] != ']' {
		return
	}
	h.count, h.msg = n, b[:len(b)-1]
}

// A stampCache is the last RFC 3164 stamp and what it meant: a busy log has many lines per second.
type stampCache struct {
	words  [2]uint64 // the stamp and a blank, as load8 has them
	at     time.Time
	minute time.Time // at without its seconds
	ref    time.Time // the last one that it was found to hold for
}

// An isoCache is the same for stamps with a zone, which say all that is to be known, but for the fraction.
type isoCache struct {
	text [19]byte
	zone [6]byte
	n    int // bytes of zone, 0: nothing is remembered
	at   time.Time
	unix int64  // at without its seconds
	tail uint64 // the zone as load8 has it, and which bits those are
	mask uint64
	// The same for stamps without a zone, of which only the minute is remembered.
	local struct {
		text   [2]uint64
		minute time.Time
		second uint32 // ":SS " as load4 has it, 0: nothing is remembered
		at     time.Time
	}
}

// micro reads YYYY-MM-DDTHH:MM:SS.ffffff and a zone, as rsyslog writes it, at the start of a line, if minute and zone are those
// of the last stamp. It returns how long that is, 0 if it is anything else.
func (c *isoCache) micro(b []byte) (at time.Time, n int) {
	if len(b) < 40 || c.n == 0 || load8(b, 0) != load8(c.text[:], 0) || load8(b, 8) != load8(c.text[:], 8) {
		return at, 0
	}
	x, y := load8(b, 16), load8(b, 24) // :SS.ffff ff+hh:mm
	const frame, frameMask, points = ':' | '.'<<24, 0xff | 0xff<<24, 0x80 | 0x80<<24
	if x&frameMask != frame || others(x) != points || others(y)&0xffff != 0 || b[17] > '5' || (y>>16^c.tail)&c.mask != 0 {
		return at, 0
	}
	if n = 26 + c.n; b[n] != ' ' {
		return at, 0
	}
	d := (x>>32 | y<<32) << 16 & (0x0f * ones) // the digits of the fraction behind two zeros
	d = (d*10 + d>>8) & 0x00ff00ff00ff00ff
	d = (d*100 + d>>16) & 0x0000ffff0000ffff
	d = (d*10000 + d>>32) & 0xffffffff
	sec := x>>8&0x0f*10 + x>>16&0x0f
	return time.Unix(c.unix+int64(sec), int64(d*1000)).UTC(), n
}

// time converts the stamp of h.
func (p *Parser) time(h *header, ref time.Time) (time.Time, bool) {
	switch h.kind {
	case stampNone:
		return ref, true
	case stampBSD:
		return p.bsdTime(h.stamp, ref)
	case stampISO:
		return p.isoTime(h.stamp, ref)
	case stampTAI:
		return taiTime(h.stamp)
	case stampMicro:
		return microTime(h.stamp)
	default:
		return unixTime(h.stamp)
	}
}

func (p *Parser) bsdTime(b []byte, ref time.Time) (time.Time, bool) {
	c := &p.stamps
	frac, ok := fraction(b[15:])
	if !ok {
		return ref, false
	}
	sec, ok4 := two(b[13:])
	text := [2]uint64{load8(b, 0), load8(b, 7)>>8 | ' '<<56}
	if x := text[1] ^ c.words[1]; text[0] == c.words[0] && x<<24 == 0 && ok4 && sec < 60 { // the same minute
		if x == 0 && ref == c.ref {
			return after(c.at, frac), true
		}
		// The year of a cached stamp holds for every ref from a day before it to nearly a year after it.
		at := c.minute.Add(time.Duration(sec) * time.Second)
		if d := ref.Sub(at); d >= -24*time.Hour && d < 300*24*time.Hour && c.ref.Location() == ref.Location() {
			c.at, c.ref, c.words = at, ref, text
			return after(at, frac), true
		}
	}
	month := monthOf(b)
	day, ok1 := 0, isDigit(b[5])
	if b[4] != ' ' {
		ok1 = ok1 && isDigit(b[4])
		day = int(b[4]-'0') * 10
	}
	day += int(b[5] - '0')
	hour, ok2 := two(b[7:])
	minute, ok3 := two(b[10:])
	if month == 0 || !ok1 || !ok2 || !ok3 || !ok4 || day < 1 || day > 31 || hour > 23 || minute > 59 || sec > 60 {
		return ref, false
	}
	sec = min(sec, 59) // a leap second
	loc := ref.Location()
	// The latest year that does not put the stamp more than a day ahead. 29 February may be eight years back.
	for y := ref.Year() + 1; y >= ref.Year()-8; y-- {
		at := time.Date(y, month, day, hour, minute, sec, 0, loc)
		if at.Sub(ref) > 24*time.Hour || at.Add(time.Hour).Day() != day && at.Day() != day {
			continue
		}
		c.at, c.ref, c.words, c.minute = at, ref, text, at.Add(-time.Duration(sec)*time.Second)
		return after(at, frac), true
	}
	return ref, false
}

func monthOf(b []byte) time.Month {
	const names = "JanFebMarAprMayJunJulAugSepOctNovDec"
	for i := 0; i < len(names); i += 3 {
		if b[0] == names[i] && b[1] == names[i+1] && b[2] == names[i+2] {
			return time.Month(i/3 + 1)
		}
	}
	return 0
}

// after is t.Add, which most stamps have no need of.
func after(t time.Time, d time.Duration) time.Time {
	if d == 0 {
		return t
	}
	return t.Add(d)
}

// isoTime reads YYYY-MM-DDTHH:MM:SS[.f...][Z|+hh:mm|+hhmm]; without a zone it is ref's. T may be a blank, and then a blank
// stands before the zone too.
func (p *Parser) isoTime(b []byte, ref time.Time) (time.Time, bool) {
	if len(b) < 19 {
		return ref, false
	}
	if at, n := p.isoStamps.micro(b[:cap(b)]); n == len(b) { // of lines that are not quick's
		return at, true
	}
	n := 19
	for n < len(b) && (b[n] == '.' || isDigit(b[n])) {
		n++
	}
	frac, ok := fraction(b[19:n])
	if !ok {
		return ref, false
	}
	c := &p.isoStamps
	if n == len(b) {
		sec, ok := two(b[17:])
		if l := &c.local; ok && sec < 60 && b[16] == ':' && load8(b, 0) == l.text[0] && load8(b, 8) == l.text[1] && l.minute.Location() == ref.Location() {
			return l.minute.Add(time.Duration(sec)*time.Second + frac), true
		}
	}
	if c.n > 0 && string(b[:19]) == string(c.text[:]) && string(b[n:]) == string(c.zone[:c.n]) {
		return after(c.at, frac), true
	}
	if b[4] != '-' || b[7] != '-' || b[10] != 'T' && b[10] != ' ' || b[13] != ':' || b[16] != ':' {
		return ref, false
	}
	var v [7]int
	for i, at := range [...]int{0, 2, 5, 8, 11, 14, 17} {
		n, ok := two(b[at:])
		if !ok {
			return ref, false
		}
		v[i] = n
	}
	year, month, day, hour, minute, sec := v[0]*100+v[1], v[2], v[3], v[4], v[5], v[6]
	if month < 1 || month > 12 || day < 1 || day > 31 || hour > 23 || minute > 59 || sec > 60 {
		return ref, false
	}
	zone := b[n:]
	z := zone
	if len(z) > 0 && z[0] == ' ' && b[10] == ' ' {
		z = z[1:]
	}
	if len(z) == 0 {
		at := time.Date(year, time.Month(month), day, hour, minute, sec, int(frac), ref.Location())
		if n == len(b) {
			c.local.text = [2]uint64{load8(b, 0), load8(b, 8)}
			c.local.minute, c.local.second = at.Add(-time.Duration(sec)*time.Second-frac), 0
		}
		return at, true
	}
	offset := 0
	if !(len(z) == 1 && z[0] == 'Z') {
		if len(z) != 5 && !(len(z) == 6 && z[3] == ':') || z[0] != '+' && z[0] != '-' {
			return ref, false
		}
		hh, ok1 := two(z[1:])
		mm, ok2 := two(z[len(z)-2:])
		if !ok1 || !ok2 || hh > 23 || mm > 59 {
			return ref, false
		}
		if offset = hh*3600 + mm*60; z[0] == '-' {
			offset = -offset
		}
	}
	at := time.Date(year, time.Month(month), day, hour, minute, sec, 0, time.UTC).Add(-time.Duration(offset) * time.Second)
	if len(zone) <= len(c.zone) {
		c.n, c.at, c.unix = copy(c.zone[:], zone), at, at.Unix()-int64(sec)
		copy(c.text[:], b)
		c.tail, c.mask = 0, 1<<(8*c.n)-1
		for i, z := range zone {
			c.tail |= uint64(z) << (8 * i)
		}
	}
	return after(at, frac), true
}

// taiTime reads @ and TAI64N. Nobody's clock here counts leap seconds: the writers add 10 s to Unix time.
func taiTime(b []byte) (time.Time, bool) {
	sec, nano := int64(0), int64(0)
	for _, c := range b[1:17] {
		sec = sec<<4 | int64(unhex(c))
	}
	for _, c := range b[17:25] {
		nano = nano<<4 | int64(unhex(c))
	}
	sec -= 1<<62 + 10
	if sec < 0 || sec > 1<<40 || nano >= 1e9 {
		return time.Time{}, false
	}
	return time.Unix(sec, nano).UTC(), true
}

func microTime(b []byte) (time.Time, bool) {
	if len(b) < 15 || len(b) > 17 {
		return time.Time{}, false
	}
	v := int64(0)
	for _, c := range b {
		if !isDigit(c) {
			return time.Time{}, false
		}
		v = v*10 + int64(c-'0')
	}
	return time.UnixMicro(v).UTC(), true
}

func unixTime(b []byte) (time.Time, bool) {
	n, sec := 0, int64(0)
	for n < len(b) && isDigit(b[n]) && n < 11 {
		sec = sec*10 + int64(b[n]-'0')
		n++
	}
	frac, ok := fraction(b[n:])
	if !ok || n < 9 {
		return time.Time{}, false
	}
	return time.Unix(sec, int64(frac)).UTC(), true
}

// fraction reads ".ffffff", up to nanoseconds; nothing is 0.
func fraction(b []byte) (time.Duration, bool) {
	if len(b) == 0 {
		return 0, true
	}
	if b[0] != '.' || len(b) == 1 || len(b) > 10 {
		return 0, false
	}
	v := time.Duration(0)
	for _, c := range b[1:] {
		if !isDigit(c) {
			return 0, false
		}
		v = v*10 + time.Duration(c-'0')
	}
	return v * nanos[len(b)-1], true
}

// nanos is how many nanoseconds the last of so many digits of a fraction counts.
var nanos = [...]time.Duration{1e9, 1e8, 1e7, 1e6, 1e5, 1e4, 1e3, 1e2, 1e1, 1}

func two(b []byte) (int, bool) {
	if !isDigit(b[0]) || !isDigit(b[1]) {
		return 0, false
	}
	return int(b[0]-'0')*10 + int(b[1]-'0'), true
}
