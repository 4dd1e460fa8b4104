//go:build linux

package e2e

import (
	"bytes"
	"cmp"
	"crypto/aes"
	"crypto/cipher"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"

	"golang.org/x/sys/unix"

	"github.com/mxshield/mxshield/gossip"
	"github.com/mxshield/mxshield/scripts/lab"
)

// gossipPort is where the nodes talk.
const gossipPort = gossip.DefaultPort

// wire is what was heard between the nodes, as it went and as it was meant: the test holds the key.
type wire struct {
	packets [][]byte // datagrams as they were sent
	calls   [][]byte // what callers sent on streams
	plain   []byte   // what all of it says, opened
	opened  int      // datagrams and frames
}

// hear opens what was captured. Whatever no key opens, or is packed so that nobody could search it, is an error.
func (c *cluster) hear(all []lab.Segment) (w wire) {
	c.t.Helper()
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(c.key))
	if err != nil {
		c.t.Fatal(err)
	}
	b, err := aes.NewCipher(key)
	if err != nil {
		c.t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(b)
	if err != nil {
		c.t.Fatal(err)
	}
	const label, head = "\xf4\x08mxshield", 5
	// Version, nonce, ciphertext; the label is authenticated with it, and a frame's header.
	open := func(b []byte, extra string) bool {
		if len(b) < 1+gcm.NonceSize() || b[0] != 1 {
			return false
		}
		plain, err := gcm.Open(nil, b[1:1+gcm.NonceSize()], b[1+gcm.NonceSize():], []byte(extra))
		if err != nil || len(plain) == 0 {
			return false
		}
		w.opened++
		w.plain = append(append(w.plain, plain...), "\n--\n"...)
		if packed(plain) {
			c.t.Errorf("a message is compressed: %x", plain[:min(len(plain), 40)])
		}
		return true
	}
	for _, s := range all {
		if s.Proto != unix.IPPROTO_UDP {
			continue
		}
		w.packets = append(w.packets, s.Payload)
		if rest, ok := bytes.CutPrefix(s.Payload, []byte(label)); !ok || !open(rest, label[2:]) {
			c.t.Errorf("a datagram of %s that the key does not open: %x", s.From, s.Payload[:min(len(s.Payload), 40)])
		}
	}
	cut := 0
	for _, s := range streamsOf(all) {
		if len(s) == 0 {
			continue // a connection that was tried, or closed without a word
		}
		rest, call := bytes.CutPrefix(s, []byte(label)) // the answer has no label
		if call {
			w.calls = append(w.calls, s)
		}
		if len(rest) < head || rest[0] != 10 || len(rest)-head < int(binary.BigEndian.Uint32(rest[1:])) {
			cut++
			continue
		}
		n := head + int(binary.BigEndian.Uint32(rest[1:]))
		if !open(rest[head:n], string(rest[:head])+label[2:]) || n != len(rest) {
			c.t.Errorf("a stream that the key does not open, or with more than a frame: %x", s[:min(len(s), 40)])
		}
	}
	if cut > 3 { // who was killed, and what was under way at the end
		c.t.Errorf("%d streams were cut short", cut)
	}
	return w
}

// packed says whether a message of memberlist's, or a part of it, is compressed.
func packed(b []byte) bool {
	if len(b) > 5 && b[0] == 12 { // a checksum and a message
		b = b[5:]
	}
	if len(b) < 2 || b[0] != 7 { // several: their number and lengths, then they
		return len(b) > 0 && b[0] == 9
	}
	n := int(b[1])
	at := 2 + 2*n
	for i := range n {
		if at >= len(b) || b[at] == 9 {
			return true
		}
		at += int(binary.BigEndian.Uint16(b[2+2*i:]))
	}
	return false
}

// streamsOf puts the segments of each direction of each connection together, up to the first gap.
func streamsOf(all []lab.Segment) (list [][]byte) {
	type flow struct{ from, to netip.AddrPort }
	type stream struct {
		first  uint32
		pieces []lab.Segment
	}
	open := map[flow]*stream{}
	var streams []*stream
	for _, s := range all {
		if s.Proto != unix.IPPROTO_TCP {
			continue
		}
		f := flow{s.From, s.To}
		if o := open[f]; s.SYN && (o == nil || o.first != s.Seq+1) {
			open[f] = &stream{first: s.Seq + 1}
			streams = append(streams, open[f])
		}
		if o := open[f]; o != nil && len(s.Payload) > 0 {
			o.pieces = append(o.pieces, s)
		}
	}
	for _, s := range streams {
		slices.SortStableFunc(s.pieces, func(a, b lab.Segment) int { return cmp.Compare(a.Seq-s.first, b.Seq-s.first) })
		var b []byte
		for _, p := range s.pieces {
			at := int(p.Seq - s.first)
			if at > len(b) {
				break
			}
			b = append(b, p.Payload[min(len(p.Payload), len(b)-at):]...)
		}
		list = append(list, b)
	}
	return list
}

// disguises are the ways in which a word might go over the wire.
func disguises(word string) map[string][]byte {
	list := map[string][]byte{}
	for how, w := range map[string]string{"": word, "small ": strings.ToLower(word), "capital ": strings.ToUpper(word)} {
		b := []byte(w)
		list[how+"plain"] = b
		list[how+"hex"] = []byte(hex.EncodeToString(b))
		list[how+"HEX"] = []byte(strings.ToUpper(hex.EncodeToString(b)))
		back := bytes.Clone(b)
		slices.Reverse(back)
		list[how+"backwards"] = back
		for name, e := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding} {
			for skip := range 3 { // characters that hold a bit of a neighbour are left out
				s := e.EncodeToString(append(make([]byte, skip), b...))
				list[fmt.Sprintf("%s%s at %d", how, name, skip)] = []byte(s[(skip*8+5)/6 : (skip+len(b))*8/6])
			}
		}
		var wide []byte
		for _, u := range utf16.Encode([]rune(w)) {
			wide = binary.LittleEndian.AppendUint16(wide, u)
		}
		list[how+"utf16"] = wide
		m, s1, s2 := md5.Sum(b), sha1.Sum(b), sha256.Sum256(b)
		for name, sum := range map[string][]byte{"md5": m[:], "sha1": s1[:], "sha256": s2[:]} {
			list[how+name] = sum[:8]
			list[how+name+" in hex"] = []byte(hex.EncodeToString(sum[:8]))
		}
	}
	return list
}

// named lists the words that a text names, however disguised, as far as that can be told from chance.
func named(text []byte, words []string) (list []string) {
	for _, w := range words {
		for how, b := range disguises(w) {
			if i := bytes.Index(text, b); len(b) >= 5 && i >= 0 {
				list = append(list, fmt.Sprintf("%q, %s: %q", w, how, text[max(0, i-30):min(len(text), i+30)]))
			}
		}
	}
	return list
}

var (
	logAddress = regexp.MustCompile(`<([^<>\s]+)>`)
	logName    = regexp.MustCompile(`(?:sasl_username|client|connect from|RCPT from|helo)[= ]<?([^\[\],;<>\s]+)`)
)

// wordsOf are the mailboxes and names in a mail log: each whole, its local part, and its domain.
func wordsOf(log string) (list []string) {
	for _, m := range slices.Concat(logAddress.FindAllStringSubmatch(log, -1), logName.FindAllStringSubmatch(log, -1)) {
		if w := m[1]; w != "unknown" {
			local, domain, _ := strings.Cut(w, "@")
			list = append(list, w, local, domain)
		}
	}
	slices.Sort(list)
	return slices.DeleteFunc(slices.Compact(list), func(w string) bool { return len(w) < 5 }) // shorter ones are there by chance
}

// TestNamed: the search finds what is there, in every disguise.
func TestNamed(t *testing.T) {
	words := wordsOf("postfix/smtpd[7]: NOQUEUE: reject: RCPT from evil.helo.example.net[198.18.0.1]: 550 <John.Doe@example.org>: no; helo=<dialup.example.com>\n" +
		"postfix/smtpd[7]: 4A: client=unknown[198.18.0.2], sasl_username=alice")
	want := []string{"John.Doe", "John.Doe@example.org", "alice", "dialup.example.com", "evil.helo.example.net", "example.org"}
	if !slices.Equal(words, want) {
		t.Fatalf("%q, want %q", words, want)
	}
	noise := bytes.Repeat([]byte("\x00mx1\xc6\x12\x00\x01"), 50)
	if got := named(noise, words); len(got) > 0 {
		t.Errorf("found %q in noise", got)
	}
	for _, w := range words {
		for _, skip := range []int{0, 1, 2} {
			in := append(append(bytes.Repeat([]byte{'#'}, skip), w...), '!')
			for _, text := range []string{string(in), hex.EncodeToString(in), base64.StdEncoding.EncodeToString(in), base64.URLEncoding.EncodeToString(in)} {
				if len(named(slices.Concat(noise, []byte(text), noise), []string{w})) == 0 {
					t.Errorf("%q is not found in %q", w, text)
				}
			}
		}
		sum := sha256.Sum256([]byte(strings.ToLower(w)))
		if len(named(slices.Concat(noise, sum[:], noise), []string{w})) == 0 {
			t.Errorf("the hash of %q is not found", w)
		}
	}
}

// nobodyIsNamed: attacks and mail of every sort at two real Postfix, commands with words of people in them, and a node that
// comes back without its state. All that went over the wire meanwhile is opened and searched for every mailbox and name
// in the mail logs.
func (c *cluster) nobodyIsNamed() wire {
	t, ctx := c.t, c.t.Context()
	capture, err := c.top.Net.Capture(gossipPort)
	if err != nil {
		t.Fatal(err)
	}
	stop := func() []lab.Segment {
		all, err := capture.Stop()
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	first, second, last := c.nodes[0], c.nodes[1], c.nodes[len(c.nodes)-1]
	src := c.next(6)
	harvester := lab.Talk{Reply: brief.Reply, Helo: "dialup.harvester.example.com", From: "<collector@harvester.example.com>"}
	friend := lab.Talk{Helo: "mail.partner.example.net", From: "<alice.cooper@partner.example.net>"}
	// They are heard of by name, deliver, and offend.
	lab.Dictionary(ctx, c.top.Net, src[0], first.port25(src[0]), lab.DictionaryOptions{Talk: harvester, Recipients: 40})
	for i, n := range []int{5, 8} { // too little on each
		var guesses []string
		for k := range n {
			guesses = append(guesses, fmt.Sprintf("<%s%d%d@example.org>", []string{"heinrich", "magdalena", "siegfried", "walburga"}[k%4], i, k))
		}
		lab.Dictionary(ctx, c.top.Net, src[1], c.nodes[i].port25(src[1]), lab.DictionaryOptions{Talk: harvester, Recipients: n, Rcpt: guesses})
	}
	submission := netip.AddrPortFrom(first.port25(src[2]).Addr(), 587)
	var users []string
	for i := range 25 {
		users = append(users, []string{"postbote", "hausmeister", "sekretariat", "buchhaltung", "geschaeftsleitung"}[i%5]+strconv.Itoa(i)+"@example.org")
	}
	lab.SASLBrute(ctx, c.top.Net, src[2], submission, lab.SASLOptions{Talk: harvester, Attempts: len(users), Users: users})
	lab.RelayProbe(ctx, c.top.Net, src[3], second.port25(src[3]), lab.RelayOptions{Talk: harvester, Attempts: 6, Rcpt: "<victim@elsewhere.example.com>"})
	lab.Dictionary(ctx, c.top.Net, src[4], second.port25(src[4]), lab.DictionaryOptions{Talk: harvester, Recipients: 1, Rcpt: []string{"<" + trap + ">"}})
	for _, r := range []*rig{first, second} {
		h := lab.Honest(ctx, c.top.Net, lab.Honest4, r.port25(lab.Honest4), lab.HonestOptions{Talk: friend, Messages: 3, To: []string{"user17@example.org", "user23@example.org"}, Unknown: 3})
		if h.Accepted != 3 {
			t.Fatalf("the honest sender: %+v", h.Result)
		}
	}
	dropped := []netip.Addr{src[0], src[1], src[2], src[3], src[4]}
	for i, a := range dropped {
		c.nodes[[]int{0, 1, 0, 1, 1}[i]].awaitBlock(a)
	}
	c.doors(c.nodes, true, src[0], src[1], src[3], src[4])
	// People say why.
	first.must("block", "--reason", "the chairwoman insisted", src[5].String())
	second.must("allow", "add", "--reason", "ticket of Mister Smithers", src[3].String())
	last.must("unblock", "--reason", "Frau Lehmann telephoned", src[0].String())
	c.allDoors(c.nodes, map[netip.Addr]bool{src[0]: false, src[3]: false, src[5]: true})
	c.equal(c.nodes...)
	last.kill()
	if err := os.Remove(filepath.Join(last.dir, "state.db")); err != nil {
		t.Fatal(err)
	}
	last.start()
	c.meet(c.nodes...)
	c.equal(c.nodes...)
	c.doors(c.nodes, true, src[5])

	w := c.hear(stop())
	words := []string{"chairwoman", "insisted", "Smithers", "Lehmann", "telephoned", trap}
	for _, r := range []*rig{first, second} {
		log, err := os.ReadFile(r.mta.LogPath())
		if err != nil {
			t.Fatal(err)
		}
		words = append(words, wordsOf(string(log))...)
	}
	slices.Sort(words)
	words = slices.Compact(words)
	for _, must := range []string{"user17@example.org", "user23", "alice.cooper", "partner.example.net", "collector@harvester.example.com", "magdalena15", "geschaeftsleitung4", "dialup.harvester.example.com", "victim@elsewhere.example.com", "example.org"} {
		if !slices.Contains(words, must) {
			t.Errorf("the logs do not name %q: the words are not those of the story", must)
		}
	}
	a, blocked := src[5].As4(), []byte("mx3")
	if !bytes.Contains(w.plain, blocked) || !bytes.Contains(w.plain, a[:]) {
		t.Fatalf("%d bytes, and not even what must be there: the ear is deaf", len(w.plain))
	}
	for _, found := range named(w.plain, words) {
		t.Errorf("it went over the wire: %s", found)
	}
	var raw []byte
	for _, p := range slices.Concat(w.packets, w.calls) {
		raw = append(raw, p...)
	}
	for _, found := range named(raw, words) {
		t.Errorf("it went over the wire unsealed: %s", found)
	}
	t.Logf("%d datagrams and %d calls, %d messages of %d bytes opened, none names one of %d words", len(w.packets), len(w.calls), w.opened, len(w.plain), len(words))
	return w
}
