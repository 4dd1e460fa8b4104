package tail

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// fake writes a shell script that stands for a command.
func fake(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fake")
	must(t, os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755))
	return path
}

func TestDiscover(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "mail.log"), filepath.Join(dir, "maillog")
	none := filepath.Join(dir, "none")
	postfix := func(maillog string) string {
		return fake(t, `[ "$*" = "-x -h maillog_file" ] || exit 1; echo '`+maillog+`'`)
	}
	journal := fake(t, `printf 'postfix@-mx2.service\nssh.service\npostfix@-.service\npostfix-evil\n'`)
	opts := func(postconf, journalctl string) DiscoverOptions {
		return DiscoverOptions{Postconf: postconf, Journalctl: []string{journalctl}, Files: []string{first, second}}
	}
	check := func(o DiscoverOptions, file string, units []string, why string, warnings ...string) {
		t.Helper()
		d, err := Discover(t.Context(), o)
		if err != nil || d.File != file || !slices.Equal(d.Units, units) || !strings.Contains(d.Why, why) || len(d.Warnings) != len(warnings) {
			t.Errorf("got %+v, %v", d, err)
			return
		}
		for i, w := range warnings {
			if !strings.Contains(d.Warnings[i], w) {
				t.Errorf("warning %q, want %q", d.Warnings[i], w)
			}
		}
		if in := d.Open(FileOptions{}, JournalOptions{}); file != "" && in.ID() != "file:"+file || file == "" && in.ID() != "journal:postfix" {
			t.Errorf("opens %s", in.ID())
		}
	}
	units := []string{"postfix.service", "postfix@-.service", "postfix@-mx2.service"}
	check(opts(none, none), first, nil, "neither a log file nor")
	check(opts(none, journal), "", units, "a systemd journal")
	check(opts(none, fake(t, "true")), "", units[:2], "written nothing yet")
	check(opts(none, fake(t, "echo no >&2; exit 1")), "", units[:2], "journal", "could not ask the journal")
	check(opts(postfix("/var/log/postfix.log"), journal), "/var/log/postfix.log", nil, "maillog_file")
	check(opts(postfix("/dev/stdout"), journal), "", units, "journal", "standard output")
	check(opts(postfix("relative"), journal), "", units, "journal", "not a path")
	check(opts(fake(t, "echo broken main.cf >&2; exit 1"), journal), "", units, "journal", "broken main.cf")
	appendTo(t, second, "x\n")
	check(opts(postfix(""), journal), second, nil, "the first of", "any local user")
	appendTo(t, first, "x\n")
	check(opts(postfix(""), journal), first, nil, "the first of", "any local user")
	old := opts(postfix(""), journal)
	old.Now = func() time.Time { return time.Now().Add(30 * 24 * time.Hour) }
	check(old, first, nil, "the first of", "any local user", "30 days ago")
	check(opts(postfix("/var/log/postfix.log"), journal), "/var/log/postfix.log", nil, "maillog_file")
}

func TestRunIsBounded(t *testing.T) {
	out, err := run(t.Context(), fake(t, "yes | head -c 1000000"))
	if err != nil || len(out) != 64<<10 {
		t.Errorf("%d bytes, %v", len(out), err)
	}
	began := time.Now()
	if _, err := run(t.Context(), fake(t, "sleep 1000 & sleep 1000")); err == nil || time.Since(began) > patience {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}

func TestMyNetworks(t *testing.T) {
	value := "127.0.0.0/8 [::ffff:127.0.0.0]/104, [::1]/128 192.0.2.7,[2001:db8::1] 198.51.100.9/24\t!10.0.0.1 hash:/etc/postfix/nets /etc/nets $mynetworks 1.2.3 [::1 10.0.0.0/33 [::ffff:1.2.3.4]/90"
	conf := fake(t, `[ "$*" = "-x -h mynetworks" ] || exit 1; cat <<'END'`+"\n"+value+"\nEND")
	nets, notes, err := MyNetworks(t.Context(), DiscoverOptions{Postconf: conf})
	var want []netip.Prefix
	for _, s := range []string{"127.0.0.0/8", "::1/128", "192.0.2.7/32", "2001:db8::1/128", "198.51.100.0/24"} {
		want = append(want, netip.MustParsePrefix(s))
	}
	if err != nil || !slices.Equal(nets, want) {
		t.Errorf("got %v, %v", nets, err)
	}
	if len(notes) != 8 || !strings.Contains(notes[0], "exclusion") {
		t.Errorf("notes:\n%s", strings.Join(notes, "\n"))
	}
	if _, _, err := MyNetworks(t.Context(), DiscoverOptions{Postconf: "no-such-postconf"}); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("without Postfix: %v", err)
	}
	if nets, notes := parseNetworks(" , \n"); nets != nil || notes != nil {
		t.Errorf("of nothing: %v %v", nets, notes)
	}
}

func TestLookupUsers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "passwd")
	must(t, os.WriteFile(path, []byte("root:x:0:0::/:\npostfix:x:108:113::/:\npostfixx:x:5:5::/:\nbad\nexim:x:-1:1::/:\n"), 0o644))
	if got := fmt.Sprint(lookupUsers(path, []string{"postfix", "exim"})); got != "[108]" {
		t.Error(got)
	}
	if got := lookupUsers(path+".none", []string{"postfix"}); got != nil {
		t.Error(got)
	}
}
