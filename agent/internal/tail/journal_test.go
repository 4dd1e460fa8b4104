package tail

import (
	"bufio"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mxshield/mxshield/scripts/seeds"
)

// journald is a real systemd-journald in a mount namespace of its own, with a cgroup that makes its senders belong to
// postfix@-.service.
type journald struct {
	t   *testing.T
	pid string // whose mount namespace it is
	cg  string
}

const journaldScript = `
set -e
mount --make-rprivate /
mount -t tmpfs run /run
mkdir -p /run/systemd/journal /run/log/journal /run/systemd/journald.conf.d /run/id
cat > /run/systemd/journald.conf.d/test.conf <<END
[Journal]
Storage=volatile
ReadKMsg=no
Audit=no
ForwardToSyslog=no
ForwardToWall=no
RateLimitIntervalSec=2s
RateLimitBurst=100
END
echo 0123456789abcdef0123456789abcdef > /run/id/machine-id
[ -e /etc/machine-id ] || exit 9
mount --bind /run/id/machine-id /etc/machine-id
mount -t tmpfs log /var/log
mount -t tmpfs cg /sys/fs/cgroup
mount -t cgroup2 cg /sys/fs/cgroup
slice=/sys/fs/cgroup/$1
mkdir -p "$slice/postfix@-.service"
chmod 777 "$slice/postfix@-.service"
/lib/systemd/systemd-journald 2>/run/journald.err &
daemon=$!
trap 'kill $daemon; wait $daemon; for i in 1 2 3 4 5 6 7 8 9; do rmdir "$slice/postfix@-.service" "$slice" && break; sleep 0.2; done 2>/dev/null' EXIT
for i in $(seq 100); do [ -S /run/systemd/journal/dev-log ] && break; sleep 0.05; done
[ -S /run/systemd/journal/dev-log ]
echo ready
set +e
cat >/dev/null
`

func startJournald(t *testing.T) *journald {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for a mount namespace")
	}
	for _, c := range []string{"/lib/systemd/systemd-journald", "journalctl", "unshare", "nsenter"} {
		if _, err := exec.LookPath(c); err != nil {
			t.Skipf("needs %s", c)
		}
	}
	slice := fmt.Sprintf("tailtest%d.slice", os.Getpid())
	cmd := exec.Command("unshare", "--mount", "bash", "-c", journaldScript, "journald", slice)
	var said syncBuffer
	cmd.Stderr = &said
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	t.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
	})
	if line, _ := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		stdin.Close()
		t.Skipf("cannot run systemd-journald in a namespace here: %s", said.String())
	}
	return &journald{t: t, pid: strconv.Itoa(cmd.Process.Pid), cg: "/sys/fs/cgroup/" + slice + "/postfix@-.service"}
}

func (j *journald) inside(args ...string) []string {
	return append([]string{"nsenter", "--target=" + j.pid, "--mount", "--"}, args...)
}

// sender is a process of the unit that writes to the journal. It lives on while the journal looks at it.
type sender struct {
	t   *testing.T
	in  io.WriteCloser
	out *bufio.Reader
}

func (j *journald) sender(uid int) *sender {
	j.t.Helper()
	self, err := os.Executable()
	must(j.t, err)
	args := j.inside("sh", "-c", `echo $$ > "`+j.cg+`/cgroup.procs" && exec "$0" -test.run='^TestSender$'`, self)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "TAIL_TEST_SENDER="+strconv.Itoa(uid))
	cmd.Stderr = os.Stderr
	s := &sender{t: j.t}
	s.in, err = cmd.StdinPipe()
	must(j.t, err)
	out, err := cmd.StdoutPipe()
	must(j.t, err)
	s.out = bufio.NewReader(out)
	must(j.t, cmd.Start())
	j.t.Cleanup(func() {
		s.in.Close()
		cmd.Wait()
	})
	return s
}

func (s *sender) datagram(socket, text string) {
	s.t.Helper()
	fmt.Fprintf(s.in, "%s %s\n", socket, base64.StdEncoding.EncodeToString([]byte(text)))
	if line, err := s.out.ReadString('\n'); line != "sent\n" {
		s.t.Fatalf("sender: %q, %v", line, err)
	}
}

func (s *sender) syslog(text string) {
	s.t.Helper()
	s.datagram("dev-log", "<22>Jan  1 00:00:00 postfix/smtpd[12345]: "+text)
}

// native sends fields by journald's own protocol, in which values may be anything.
func (s *sender) native(fields ...string) {
	s.t.Helper()
	var b []byte
	for i := 0; i < len(fields); i += 2 {
		b = append(append(b, fields[i]...), '\n')
		b = binary.LittleEndian.AppendUint64(b, uint64(len(fields[i+1])))
		b = append(append(b, fields[i+1]...), '\n')
	}
	s.datagram("socket", string(b))
}

// TestSender is the process behind sender.
func TestSender(t *testing.T) {
	uid, err := strconv.Atoi(os.Getenv("TAIL_TEST_SENDER"))
	if err != nil {
		t.Skip("run by TestJournal")
	}
	must(t, syscall.Setgid(uid))
	must(t, syscall.Setuid(uid))
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		socket, text, _ := strings.Cut(in.Text(), " ")
		b, err := base64.StdEncoding.DecodeString(text)
		must(t, err)
		c, err := net.Dial("unixgram", "/run/systemd/journal/"+socket)
		must(t, err)
		_, err = c.Write(b)
		must(t, err)
		c.Close()
		fmt.Println("sent")
	}
}

// messages returns what stands behind the header of each line, after a look at the header.
func (r *running) messages() []string {
	r.t.Helper()
	var out []string
	for _, l := range r.lines {
		if !lineShape.MatchString(strings.ToValidUTF8(l, "?")) {
			r.t.Errorf("line %q", l)
		}
		_, m, _ := strings.Cut(l, "]: ")
		out = append(out, m)
	}
	return out
}

func (r *running) wantMessages(want ...string) {
	r.t.Helper()
	for len(r.lines) < len(want) {
		r.take()
	}
	same(r.t, r.messages(), want)
}

func TestJournal(t *testing.T) {
	d := startJournald(t)
	root, mta, user := d.sender(0), d.sender(4242), d.sender(65534)
	in := NewJournal([]string{"postfix@-.service", "postfix.service"}, JournalOptions{
		Command: d.inside("journalctl"), Trusted: []uint32{0, 4242}, Backoff: 10 * time.Millisecond})
	if in.ID() != "journal:postfix.service,postfix@-.service" {
		t.Errorf("ID %s", in.ID())
	}

	root.syslog("one")
	mta.syslog("two")
	user.syslog("forged: connect from unknown[192.0.2.1]")
	r := startAt(t, in, nil)
	r.wantMessages("one", "two")
	if !strings.Contains(r.lines[0], " postfix/smtpd[") {
		t.Errorf("line %q", r.lines[0])
	}
	s := r.waitStatus("counting the forged one", func(s Status) bool { return s.Untrusted == 1 && s.State == Following })
	if s.Lines != 2 || !strings.Contains(s.Detail, "ignored 1 ") {
		t.Errorf("status %+v", s)
	}

	// Live; and what a hostile text can do.
	mta.syslog("three")
	root.native("MESSAGE", "four\n2026-01-01T00:00:00.000000Z mx1 postfix/smtpd[1]: connect from unknown[192.0.2.1]",
		"SYSLOG_IDENTIFIER", "postfix/smtpd[7]: x", "_UID", "0", "_PID", "1")
	root.native("MESSAGE", "fi\xff\xfeve\x00", "SYSLOG_IDENTIFIER", "postfix/smtpd")
	user.native("MESSAGE", "forged", "SYSLOG_IDENTIFIER", "postfix/smtpd", "_UID", "0")
	root.native("MESSAGE", strings.Repeat("x", 100000), "SYSLOG_IDENTIFIER", "postfix/smtpd")
	root.native("MESSAGE", "six", "MESSAGE", "seven", "SYSLOG_IDENTIFIER", "postfix/smtpd")
	r.wantMessages("one", "two", "three",
		"four 2026-01-01T00:00:00.000000Z mx1 postfix/smtpd[1]: connect from unknown[192.0.2.1]", "fi\xff\xfeve?", "six")
	if !strings.Contains(r.lines[3], " postfix/smtpd_7___x[") {
		t.Errorf("line %q", r.lines[3])
	}
	if s := r.in.Status(); s.Untrusted != 2 || s.Truncated != 1 {
		t.Errorf("status %+v", s)
	}

	// A batch that is not committed comes again.
	committed := r.mark
	mta.syslog("eight")
	if b, ok := r.peek(); !ok || len(b.Lines) != 1 {
		t.Fatalf("batch %+v", b)
	}
	r.stop()
	mta.syslog("nine")
	r = startAt(t, in, committed)
	r.wantMessages("eight", "nine")

	// journalctl dies.
	r.waitStatus("following", func(s Status) bool { return s.State == Following })
	killChildren(t, "journalctl")
	mta.syslog("ten")
	r.wantMessages("eight", "nine", "ten")
	if s := r.in.Status(); !strings.Contains(s.LastError, "killed") {
		t.Errorf("status %+v", s)
	}
	r.stop()

	// A cursor that the journal does not take: on with what is newer than the mark.
	m, err := decodeMark(r.mark)
	must(t, err)
	m.Cursor = "s=bogus"
	mta.syslog("eleven")
	r = startAt(t, in, m.encode())
	r.wantMessages("eleven")
	r.stop()
	if n := killChildren(t, "journalctl"); n != 0 {
		t.Errorf("%d journalctl left", n)
	}

	// journald drops messages, and says so.
	r = startAt(t, in, r.mark)
	for i := range 1000 {
		mta.syslog(strconv.Itoa(i))
	}
	deadline := time.Now().Add(patience)
	for r.in.Status().Suppressed == 0 {
		if time.Now().After(deadline) {
			t.Fatalf("no notice: %+v", r.in.Status())
		}
		mta.syslog("more") // journald says it with the first message it lets through again
		select {
		case b := <-r.out:
			r.commit(b)
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Logf("%d lines, %d suppressed", len(r.lines), r.in.Status().Suppressed)
}

// TestJournalRotated: the journal is rotated while it is followed, and emptied while nobody reads, the record of the cursor
// included. What is still there and newer is read, once.
func TestJournalRotated(t *testing.T) {
	d := startJournald(t)
	root := d.sender(0)
	control := func(args ...string) string {
		t.Helper()
		args = d.inside(append([]string{"journalctl"}, args...)...)
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	in := NewJournal([]string{"postfix@-.service"}, JournalOptions{Command: d.inside("journalctl"), Trusted: []uint32{0}, Backoff: 10 * time.Millisecond})
	root.syslog("one")
	r := startAt(t, in, nil)
	r.wantMessages("one")
	control("--sync", "--rotate")
	root.syslog("two")
	r.wantMessages("one", "two")
	control("--rotate", "--vacuum-files=1")
	root.syslog("three")
	r.wantMessages("one", "two", "three")
	r.stop()

	const gone = "gone before anybody read it"
	root.syslog(gone)
	// journald may be asked to sync and rotate before it takes what is in its socket.
	for deadline := time.Now().Add(patience); !strings.Contains(control("--quiet", "--output=cat"), gone); {
		if time.Now().After(deadline) {
			t.Fatal("journald did not store the record")
		}
		time.Sleep(5 * time.Millisecond)
	}
	control("--sync", "--rotate")
	control("--vacuum-time=1us")
	root.syslog("four")
	root.syslog("five")
	r = startAt(t, in, r.mark)
	r.wantMessages("four", "five")
	root.syslog("six")
	r.wantMessages("four", "five", "six")
	r.waitStatus("following", func(s Status) bool { return s.State == Following })
}

// killChildren kills this process's children of that name and says how many there were.
func killChildren(t *testing.T, name string) int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	must(t, err)
	n := 0
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		pid, rest, _ := strings.Cut(string(b), " (")
		comm, rest, _ := strings.Cut(rest, ") ")
		if f := strings.Fields(rest); comm == name && len(f) > 1 && f[1] == strconv.Itoa(os.Getpid()) {
			id, _ := strconv.Atoi(pid)
			must(t, syscall.Kill(id, syscall.SIGKILL))
			n++
		}
	}
	return n
}

// What a real journalctl does not do on demand is played by a fake one.
func TestJournalFake(t *testing.T) {
	one := strings.TrimSpace(object("MESSAGE", "one"))
	two := strings.TrimSpace(object("MESSAGE", "two", "__CURSOR", "s=2"))
	dir := t.TempDir()
	args := filepath.Join(dir, "args")
	// Ends after each record, ignores SIGTERM at last, and talks a lot on stderr.
	command := fake(t, `echo "$*" >> `+args+`
head -c 100000 /dev/zero | tr '\0' x >&2; echo "the end" >&2
case "$*" in
*--cursor=s=2*) echo '`+two+`'; trap '' TERM; while :; do sleep 1; done;;
*--cursor=*) echo '`+one+`'; echo '`+two+`'; exit 3;;
*) echo '`+one+`'; echo '{"broken'; echo '`+"-- No entries --"+`'; exit 3;;
esac`)
	in := NewJournal([]string{"postfix.service"}, JournalOptions{Command: []string{command}, Trusted: []uint32{0}, Backoff: time.Millisecond})
	r := startAt(t, in, nil)
	r.wantMessages("one", "two")
	s := in.Status()
	if !strings.Contains(s.LastError, "exit status 3") || !strings.Contains(s.LastError, "the end") || len(s.LastError) > 3000 || s.Truncated != 1 {
		t.Errorf("status %.200q %d", s.LastError, s.Truncated)
	}
	r.waitStatus("following", func(s Status) bool { return s.State == Following })
	r.stop()
	b, err := os.ReadFile(args)
	must(t, err)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], "--since=@") || !strings.Contains(lines[1], "--cursor="+someCursor) ||
		!strings.Contains(lines[2], "--unit=postfix.service") {
		t.Errorf("called with\n%s", b)
	}
}

func TestJournalErrors(t *testing.T) {
	if err := NewJournal(nil, JournalOptions{}).Run(t.Context(), nil, nil); err == nil {
		t.Error("no unit is no error")
	}
	r := startAt(t, NewJournal([]string{"x"}, JournalOptions{Command: []string{"/no/such/journalctl"}}), nil)
	s := r.waitStatus("failed", func(s Status) bool { return s.State == Failed })
	if !strings.Contains(s.LastError, "install systemd") {
		t.Errorf("status %+v", s)
	}
	r.stop()
	deaf := fake(t, "echo 'Hint: You are currently not seeing messages from other users and the system.' >&2; exec sleep 1000")
	r = startAt(t, NewJournal([]string{"x"}, JournalOptions{Command: []string{deaf}}), nil)
	r.waitStatus("failed", func(s Status) bool { return s.State == Failed && strings.Contains(s.LastError, "systemd-journal") })
}

// Whatever happens to journalctl and to the reader: with what was committed, every record is there exactly once. A journalctl
// that ends after so many bytes, in the middle of a record too, is started again and again, while readers are stopped at random
// with a batch in hand.
func TestJournalCrashes(t *testing.T) {
	seed := seeds.Of(t)
	rnd := rand.New(rand.NewPCG(seed, 1))
	dir := t.TempDir()
	const total = 600
	var records, cuts, want []string
	for i := 1; i <= total; i++ {
		uid := "0"
		if i%5 == 0 {
			uid = "65534" // nobody's: not handed over, but the mark may be at it
		} else {
			want = append(want, "m"+strconv.Itoa(i))
		}
		// Several at one time, as after a step of the clock.
		records = append(records, strings.TrimSpace(object("MESSAGE", "m"+strconv.Itoa(i), "__CURSOR", "s="+strconv.Itoa(i), "_UID", uid)))
	}
	must(t, os.WriteFile(filepath.Join(dir, "records"), []byte(join(records)), 0o600))
	for range 60 {
		cuts = append(cuts, strconv.Itoa(rnd.IntN(8000)))
	}
	must(t, os.WriteFile(filepath.Join(dir, "cuts"), []byte(join(cuts)), 0o600))
	// With a cursor it begins with the record that has it, as the real one does.
	command := fake(t, `cd `+dir+`
from=1
for a in "$@"; do case "$a" in --cursor=s=*) from=${a#--cursor=s=};; esac; done
echo >> starts
cut=$(sed -n "$(wc -l < starts)p" cuts)
if [ -n "$cut" ]; then tail -n +"$from" records | head -c "$cut"; exit 1; fi
tail -n +"$from" records; exec sleep 1000`)
	var got []string
	var mark []byte
	crashes := 0
	for len(got) < len(want) {
		in := NewJournal([]string{"postfix.service"}, JournalOptions{Command: []string{command}, Trusted: []uint32{0}, Backoff: time.Millisecond})
		r := startAt(t, in, mark)
		for batches := rnd.IntN(8); batches >= 0 && len(got) < len(want); batches-- {
			b, ok := r.peek()
			if !ok {
				t.Fatalf("no batch; %d of %d records, status %+v, mark %s", len(got), len(want), in.Status(), mark)
			}
			if batches == 0 && rnd.IntN(2) == 0 {
				break // received, and then the power went
			}
			r.commit(b)
			mark = b.Mark
			got = append(got, r.messages()...)
			r.lines = nil
		}
		r.stop()
		crashes++
	}
	t.Logf("%d restarts of the reader", crashes)
	same(t, got, want)
}
