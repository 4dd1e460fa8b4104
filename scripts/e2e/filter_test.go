package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/scripts/lab"
)

// serveFilter answers as a content filter behind Postfix's queue does, in amavis' words: it takes every message, and throws away
// those that have a word of verdicts in them. What it keeps goes nowhere: nobody here reads it. As a mail store it knows nobody whose
// name begins with x.
func serveFilter(c net.Conn, verdicts map[string]string) {
	defer c.Close()
	in := bufio.NewScanner(c)
	say := func(s string) { fmt.Fprintf(c, "%s\r\n", s) }
	say("220 filter ESMTP")
	for n := 0; in.Scan(); {
		switch line := strings.ToUpper(in.Text()); {
		case strings.HasPrefix(line, "DATA"):
			say("354 go on")
			reply := "250 2.0.0 from MTA(smtp:[127.0.0.1]:10025): 250 2.0.0 Ok: queued as 4E0000000099"
			for in.Scan() && in.Text() != "." {
				for word, text := range verdicts {
					if strings.Contains(in.Text(), word) {
						n++
						reply = fmt.Sprintf("250 2.7.0 Ok, discarded, id=%05d-01 - %s", n, text)
					}
				}
			}
			say(reply)
		case strings.HasPrefix(line, "RCPT TO:<X"):
			say("550 5.1.1 <" + in.Text()[len("RCPT TO:<"):] + ": Recipient address rejected: User unknown in virtual mailbox table")
		case strings.HasPrefix(line, "QUIT"):
			say("221 2.0.0 bye")
			return
		default:
			say("250 2.0.0 Ok")
		}
	}
}

// TestContentFilter: a message that a filter behind the queue throws away as spam is an offence of its source, though Postfix has
// accepted it, and no credit; who sends what the filter keeps, and a little that it does not, is let be.
func TestContentFilter(t *testing.T) {
	r := newRig(t, lab.Options{Main: map[string]string{"content_filter": "smtp:[127.0.0.1]:10024"}}, "")
	r.serveAt("127.0.0.1:10024", func(c net.Conn) { serveFilter(c, map[string]string{"buy-this": "spam", "an-exe": "BANNED: .exe"}) })
	r.start()
	src := lab.Sources(lab.Attack4, 3)
	spammer, list, banned := src[0], src[1], src[2]
	sent := 0
	message := func(from netip.Addr, text string) {
		t.Helper()
		replies := lab.Converse(t.Context(), r.top.Net, from, mx, lab.Talk{}, []string{"EHLO x", "MAIL FROM:<a@example.net>", "RCPT TO:<user2@example.org>",
			"DATA", "Subject: x\r\n\r\n" + text + "\r\n.", "QUIT"})
		if len(replies) < 5 || !strings.HasPrefix(replies[4], "250 2.0.0 Ok: queued") {
			t.Fatalf("%s: replies %q", from, replies)
		}
		sent++
	}
	for i := range 12 {
		text := "hello"
		if i%3 == 2 {
			text = "buy-this now"
		}
		message(list, text)
		message(banned, "an-exe")
		if i < 8 {
			message(spammer, "buy-this now")
		}
	}
	r.eventually("the filter has had all", func() bool {
		b, err := os.ReadFile(r.mta.LogPath())
		return err == nil && bytes.Count(b, []byte("status=sent (250 2.")) == sent
	})
	r.awaitLines()
	for _, a := range src {
		if w := r.why(a); w.Decision.Drop {
			t.Errorf("%s is blocked: %+v", a, w)
		}
	}
	message(spammer, "buy-this now")
	message(spammer, "buy-this now") // the tenth: the filter's answer comes after Postfix's
	if w := r.awaitBlock(spammer); w.Decision.By == nil || w.Decision.By.Cause != block.ProtocolAbuse {
		t.Errorf("the spammer: %+v", w)
	}
	for _, a := range []netip.Addr{list, banned} {
		if w := r.why(a); w.Decision.Drop {
			t.Errorf("%s is blocked: %+v", a, w)
		}
	}
}

// TestAcceptedAndBounced: a Postfix that knows none of its users takes mail for all names, and the store behind it says who is not
// there. The guesses count as if Postfix had refused them; who writes to those who are there may err now and then.
func TestAcceptedAndBounced(t *testing.T) {
	r := newRig(t, lab.Options{Main: map[string]string{"virtual_mailbox_maps": "static:all", "virtual_transport": "smtp:[127.0.0.1]:2525"}}, "")
	r.serveAt("127.0.0.1:2525", func(c net.Conn) { serveFilter(c, nil) })
	r.start()
	src := lab.Sources(lab.Attack4, 2)
	guesser, list := src[0], src[1]
	sent := 0
	message := func(from netip.Addr, to string) {
		t.Helper()
		replies := lab.Converse(t.Context(), r.top.Net, from, mx, lab.Talk{}, []string{"EHLO x", "MAIL FROM:<a@example.net>", "RCPT TO:<" + to + "@example.org>",
			"DATA", "Subject: x\r\n\r\nhello\r\n.", "QUIT"})
		if len(replies) < 5 || !strings.HasPrefix(replies[4], "250 2.0.0 Ok: queued") {
			t.Fatalf("%s: replies %q", from, replies)
		}
		sent++
	}
	for i := range 8 {
		message(guesser, fmt.Sprintf("x%d", i))
		message(list, fmt.Sprintf("user%d", i))
		message(list, fmt.Sprintf("x%d", i))
	}
	r.eventually("all are delivered or not", func() bool {
		b, err := os.ReadFile(r.mta.LogPath())
		return err == nil && bytes.Count(b, []byte("postfix/smtp[")) == sent
	})
	message(guesser, "x8")
	message(guesser, "x9")
	if w := r.awaitBlock(guesser); w.Decision.By == nil || w.Decision.By.Cause != block.Dictionary {
		t.Errorf("who guesses: %+v", w)
	}
	if w := r.why(list); w.Decision.Drop {
		t.Errorf("who has half of the names right: %+v", w)
	}
}
