package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// days writes three days of a log as logrotate leaves them, with one unknown recipient an hour, and one that goes on while
// the days change. It returns the paths as a shell lists them.
func days(t *testing.T) (dir string, paths []string) {
	t.Helper()
	dir = t.TempDir()
	start := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	for day, name := range []string{"mail.log.2.gz", "mail.log.1", "mail.log"} {
		var b bytes.Buffer
		for h := range 24 {
			at := start.Add(time.Duration(24*day+h) * time.Hour)
			fmt.Fprintf(&b, "%s mx1 postfix/smtpd[7]: NOQUEUE: reject: RCPT from unknown[198.18.0.%d]: 550 5.1.1 <x@example.org>: Recipient address rejected: User unknown in virtual mailbox table; from=<s@example.net> to=<x@example.org> proto=ESMTP helo=<h>\n", at.Format(time.Stamp), 24*day+h)
		}
		data := b.Bytes()
		if strings.HasSuffix(name, ".gz") {
			var z bytes.Buffer
			w := gzip.NewWriter(&z)
			_, _ = w.Write(data)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			data = z.Bytes()
		}
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		end := start.AddDate(0, 0, day+1)
		if err := os.Chtimes(path, end, end); err != nil {
			t.Fatal(err)
		}
	}
	return dir, []string{filepath.Join(dir, "mail.log"), filepath.Join(dir, "mail.log.1"), filepath.Join(dir, "mail.log.2.gz")}
}

func replayFiles(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	local := time.Local
	time.Local = time.UTC
	t.Cleanup(func() { time.Local = local })
	conf := filepath.Join(t.TempDir(), "conf.yaml")
	if err := os.WriteFile(conf, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	code = run(context.Background(), append([]string{"mxshield-agent", "--config", conf, "replay"}, args...), &out, &errs)
	return out.String(), errs.String(), code
}

// TestReplayInOrderOfTime: `replay mail.log*` names the newest file first. The oldest is read first.
func TestReplayInOrderOfTime(t *testing.T) {
	_, paths := days(t)
	first := ""
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}} {
		args := []string{"--events"}
		for _, i := range order {
			args = append(args, paths[i])
		}
		out, errs, code := replayFiles(t, args...)
		lines := strings.Split(strings.TrimSpace(out), "\n")
		if code != 0 || len(lines) != 72 {
			t.Fatalf("exit %d, %d lines, %s", code, len(lines), errs)
		}
		for i, l := range lines {
			if want := fmt.Sprintf(" %d 198.18.0.%d unknown_recipient 1", i%24+1, i); !strings.HasSuffix(l, want) {
				t.Fatalf("order %v, line %d: %s, want %s", order, i, l, want)
			}
		}
		if noted := strings.Contains(errs, "in the order of time"); noted == (order[0] == 2) {
			t.Errorf("order %v: %s", order, errs)
		}
		if first == "" {
			first = out
		} else if out != first {
			t.Error("another order gives other events")
		}
	}
}

// TestReplayInTurns: logs of the same hours are read in turns, so that one failed login counts once, and with a file that
// has no stamps, an empty one, and a last line without newline, no line is left out.
func TestReplayInTurns(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	var mail, dovecot strings.Builder
	for i := range 2000 {
		at := time.Date(2026, 3, 1, 0, 0, 10*i, 0, time.UTC)
		fmt.Fprintf(&mail, "%s mx1 postfix/submission/smtpd[7]: warning: unknown[198.18.%d.1]: SASL LOGIN authentication failed: UGFzc3dvcmQ6, sasl_username=u%d@example.org\n", at.Format(time.RFC3339), i%8, i)
		fmt.Fprintf(&dovecot, "%s auth: Info: passwd-file(u%d@example.org,198.18.%d.1): Password mismatch\n\n", at.Add(time.Second).Format(time.DateTime), i, i%8)
	}
	files := []string{write("mail.log", strings.TrimSuffix(mail.String(), "\n")), write("dovecot.log", dovecot.String()), write("empty", ""), write("words", "no stamp\nhere")}
	out, errs, code := replayFiles(t, append([]string{"--events"}, files...)...)
	if n := strings.Count(out, "auth_failure"); code != 0 || n != 2000 {
		t.Errorf("exit %d, %d failures of 2000, %s", code, n, errs)
	}
	if n := strings.Count(out, " other "); n != 2000 {
		t.Errorf("%d lines told again", n)
	}
	if out, _, _ = replayFiles(t, append([]string{"-o", "json"}, files...)...); !strings.Contains(out, `"lines":6002,`) {
		t.Errorf("summary %s", out[max(0, len(out)-300):])
	}
}

func TestReplayPacked(t *testing.T) {
	dir := t.TempDir()
	for magic, says := range map[string]string{"\xfd7zXZ\x00\x00": "xz -dc", "\x28\xb5\x2f\xfdxx": "zstd -dc", "BZh91AY": "bzip2 -dc", "\x1f\x8b\x08\x00": "EOF"} {
		path := filepath.Join(dir, "log")
		if err := os.WriteFile(path, []byte(magic), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, errs, code := replayFiles(t, path); code != 1 || !strings.Contains(errs, says) || !strings.Contains(errs, path) {
			t.Errorf("%q: exit %d, %q, %q", magic, code, out, errs)
		}
	}
}

// TestReplayNeverTrustsListErrors: with --trust-lists, what a list answers to everybody still counts against nobody.
func TestReplayNeverTrustsListErrors(t *testing.T) {
	reject := func(a, why string) string {
		return fmt.Sprintf("2026-03-01T10:00:00Z mx1 postfix/smtpd[7]: NOQUEUE: reject: RCPT from unknown[%s]: 554 5.7.1 Service unavailable; Client host [%s] blocked using zen.example; %s; from=<open.resolver@example.net> to=<u@example.org> proto=ESMTP helo=<error: h>\n", a, a, why)
	}
	path := filepath.Join(t.TempDir(), "log")
	text := strings.Repeat(reject("198.18.0.1", "https://check.example/ip/198.18.0.1")+
		reject("198.18.0.2", "Error: open resolver; https://check.example/returnc/pub/192.0.2.53")+
		reject("198.18.0.3", "https://check.example/returnc/pub/192.0.2.53/"), 4)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, _, code := replayFiles(t, "--trust-lists", "-o", "json", path)
	if code != 0 || !strings.Contains(out, `"prefix":"198.18.0.1/32","cause":"dnsbl"`) || !strings.Contains(out, `"blocks":1,`) {
		t.Errorf("exit %d\n%s", code, out)
	}
	if out, _, _ = replayFiles(t, "-o", "json", path); !strings.Contains(out, `"blocks":0,`) {
		t.Errorf("without --trust-lists:\n%s", out)
	}
}
