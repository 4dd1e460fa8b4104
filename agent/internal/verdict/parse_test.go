package verdict

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	sys "golang.org/x/sys/unix"

	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// eximBusy and dovecotBusy are the logs of those servers in the mix of lines that a busy host writes.
func eximBusy(n, sources int) (log [][]byte) {
	for i := 0; len(log) < n; i++ {
		ip := fmt.Sprintf("198.18.%d.%d", i%sources/251, i%251)
		add := func(format string, a ...any) {
			log = append(log, fmt.Appendf(nil, "2026-03-02 12:%02d:%02d "+format, append([]any{i / 1200 % 60, i / 20 % 60}, a...)...))
		}
		id := fmt.Sprintf("1rg%03d-%011d-%04d", i%1000, i, i%10000)
		switch i % 3 {
		case 0:
			add("%s <= user%d@example.net H=mail.example.net [%s]:4711 P=esmtps X=TLS1.3:TLS_AES_256_GCM_SHA384:256 CV=no S=%d id=%d@mail.example.net", id, i, ip, i, i)
			add("%s => user%d <user%d@example.org> R=local_user T=maildir_home", id, i, i)
			add("%s Completed", id)
		case 1:
			for r := range 4 {
				add("H=(host%d.example.com) [%s]:4711 F=<spam@example.com> rejected RCPT <name%d@example.org>: Unrouteable address", i, ip, r)
			}
		case 2:
			add("dovecot_login authenticator failed for (h) [%s]:4711: 535 Incorrect authentication data (set_id=user%d@example.org)", ip, i)
			add("unexpected disconnection while reading SMTP command from (host%d.example.com) [%s]:4711 D=1.2s", i, ip)
			add("no host name found for IP address %s", ip)
		}
	}
	return log[:n]
}

func dovecotBusy(n, sources int) (log [][]byte) {
	for i := 0; len(log) < n; i++ {
		ip := fmt.Sprintf("198.18.%d.%d", i%sources/251, i%251)
		add := func(format string, a ...any) {
			log = append(log, fmt.Appendf(nil, "Mar  2 12:%02d:%02d mx1 dovecot: "+format, append([]any{i / 1200 % 60, i / 20 % 60}, a...)...))
		}
		switch i % 3 {
		case 0:
			add("imap-login: Login: user=<user%d@example.org>, method=PLAIN, rip=%s, lip=192.0.2.25, mpid=%d, TLS, session=<abcdEFGH+/%d>", i, ip, i, i)
			add("imap(user%d@example.org)<%d><abcdEFGH+/%d>: Disconnected: Logged out in=120 out=4567 deleted=0 expunged=0", i, i, i)
		case 1:
			for r := range 3 {
				add("auth: passwd-file(user%d@example.org,%s,<abcdEFGH+/%d>): Password mismatch", r, ip, i)
			}
			add("imap-login: Disconnected (auth failed, 3 attempts in 9 secs): user=<user2@example.org>, method=PLAIN, rip=%s, lip=192.0.2.25, TLS, session=<abcdEFGH+/%d>", ip, i)
		case 2:
			add("lmtp(user%d@example.org)<%d><abcd>: sieve: msgid=<%d@example.net>: stored mail into mailbox 'INBOX'", i, i, i)
			add("pop3-login: Disconnected (no auth attempts in 0 secs): user=<>, rip=%s, lip=192.0.2.25, TLS handshaking, session=<abcd>", ip)
		}
	}
	return log[:n]
}

// threadTime is the CPU time of this thread: what else the machine does hardly counts.
func threadTime(b *testing.B) time.Duration {
	var t sys.Timespec
	if err := sys.ClockGettime(sys.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		b.Fatal(err)
	}
	return time.Duration(t.Nano())
}

// BenchmarkParseScore is the whole way from a file (in the page cache) to the scores, against a bare bufio.Scanner over the
// same file in the same run: of-scanner is how many times as fast that is, both in CPU time (wanted: at most 6, and for the
// others at most twice what Postfix takes), of-scanner-64k the same if the scanner is given a buffer of 64 kB.
// The file is read in pieces and events are scored by the batch, as replay does it.
func BenchmarkParseScore(b *testing.B) {
	const lines, sources = 50_000, 50_000
	for _, m := range []struct {
		mta string
		log [][]byte
	}{{"postfix", busy(lines, sources)}, {"exim", eximBusy(lines, sources)}, {"dovecot", dovecotBusy(lines, sources)}} {
		b.Run("mta="+m.mta, func(b *testing.B) {
			file := append(bytes.Join(m.log, []byte("\n")), '\n')
			path := filepath.Join(b.TempDir(), "mail.log")
			if err := os.WriteFile(path, file, 0o600); err != nil {
				b.Fatal(err)
			}
			disk, err := os.Open(path)
			if err != nil {
				b.Fatal(err)
			}
			defer disk.Close()
			traps := new(maillog.Traps) // as the agent does it, with a trap
			if err := traps.Add("honeypot@example.org"); err != nil {
				b.Fatal(err)
			}
			p, s := maillog.New(maillog.Options{Traps: traps, Recipients: true}), New(DefaultConfig())
			batch := make([]maillog.Event, 256)
			buf, piece := make([]byte, 64<<10), make([]byte, 256<<10)
			bare := func() *bufio.Scanner {
				if _, err := disk.Seek(0, io.SeekStart); err != nil {
					b.Fatal(err)
				}
				return bufio.NewScanner(disk)
			}
			scanner := func() *bufio.Scanner {
				in := bare()
				in.Buffer(buf, len(buf))
				return in
			}
			score := func(n int) (events int) {
				k := 0
				var v Verdict
				judge := func() {
					for i := range batch[:k] {
						s.ObserveInto(&batch[i], t0, &v)
					}
					events += k
					k = 0
				}
				parse := func(line []byte) {
					if p.Parse(line, t0, &batch[k]) {
						if k++; k == len(batch) {
							judge()
						}
					}
				}
				for n > 0 {
					if _, err := disk.Seek(0, io.SeekStart); err != nil {
						b.Fatal(err)
					}
					for rest := 0; n > 0; {
						got, err := disk.Read(piece[rest:])
						if err == io.EOF {
							break
						} else if err != nil {
							b.Fatal(err)
						}
						text := piece[:rest+got]
						for ; n > 0; n-- {
							i := bytes.IndexByte(text, '\n')
							if i < 0 {
								break
							}
							parse(text[:i])
							text = text[i+1:]
						}
						rest = copy(piece, text)
					}
				}
				judge()
				return events
			}
			read := func(n int, open func() *bufio.Scanner) {
				for n > 0 {
					for in := open(); n > 0 && in.Scan(); n-- {
					}
				}
			}
			if events := score(lines); events < lines/3 { // also makes the tables
				b.Fatalf("%d events in %d lines", events, lines)
			}
			b.SetBytes(int64(len(file) / lines))
			b.ReportAllocs()
			// In turns, so that what else the machine does hits both alike.
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var ours, theirs, buffered time.Duration
			b.ResetTimer()
			for left := b.N; left > 0; left -= lines {
				n := min(left, lines)
				began := threadTime(b)
				score(n)
				ours += threadTime(b) - began
				b.StopTimer()
				began = threadTime(b)
				read(n, bare)
				theirs += threadTime(b) - began
				began = threadTime(b)
				read(n, scanner)
				buffered += threadTime(b) - began
				b.StartTimer()
			}
			b.ReportMetric(float64(b.N)/ours.Seconds(), "lines/s")
			b.ReportMetric(float64(ours)/float64(theirs), "of-scanner")
			b.ReportMetric(float64(ours)/float64(buffered), "of-scanner-64k")
		})
	}
}
