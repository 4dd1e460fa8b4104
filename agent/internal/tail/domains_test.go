package tail

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestMailDomains(t *testing.T) {
	dir := t.TempDir()
	table, list := filepath.Join(dir, "virtual"), filepath.Join(dir, "list")
	must(t, os.WriteFile(table, []byte("# domains\nV1.example.org\tok\n  goes.on.example.org\n\nv2.example.org. x\nuser@v3.example.org x\nv1.example.org ok\n"), 0o644))
	must(t, os.WriteFile(list, []byte("l1.example.org\n"), 0o644))
	postconf := fake(t, `[ "$*" = "-x -h mydestination relay_domains virtual_alias_domains virtual_mailbox_domains" ] || exit 1
echo 'mx1.example.org, localhost.localdomain, localhost Example.org !no.example.org'
echo
echo 'hash:`+table+` `+list+`'
echo 'mysql:/etc/postfix/domains.cf, texthash:`+dir+`/missing static:all'`)
	domains, notes, err := MailDomains(t.Context(), DiscoverOptions{Postconf: postconf})
	if want := []string{"mx1.example.org", "example.org", "v1.example.org", "v2.example.org", "l1.example.org"}; err != nil || !slices.Equal(domains, want) {
		t.Errorf("%q, %v", domains, err)
	}
	if len(notes) != 3 || !strings.Contains(notes[0], "mysql") || !strings.Contains(notes[1], "missing") || !strings.Contains(notes[2], "static") {
		t.Errorf("%q", notes)
	}
	if _, _, err := MailDomains(t.Context(), DiscoverOptions{Postconf: filepath.Join(dir, "none")}); !errors.Is(err, os.ErrNotExist) && !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("%v", err)
	}
	var many strings.Builder
	for i := range 3 * maxDomains {
		fmt.Fprintf(&many, "d%d.example.org ", i)
	}
	if domains, _ := parseDomains(many.String()); len(domains) != maxDomains {
		t.Errorf("%d domains", len(domains))
	}
}

// FuzzDomains: whatever stands in Postfix's parameters and tables, only names come out that can have an MX, each once, and not
// many.
func FuzzDomains(f *testing.F) {
	for _, s := range []string{
		"example.org, example.net mail.example.com localhost.localdomain !example.com $myhostname", "# comment\nexample.org OK\n  more.example.org\nexample.net.\tx\n\n@example.com y",
		"hash:relative btree:/nonexistent/table proxy:hash:/etc/x /dev/null", "xn--bcher-kva.example \xff.example -.- a..b", strings.Repeat("a.b ", 3000),
	} {
		f.Add(s)
	}
	path := filepath.Join(f.TempDir(), "table")
	f.Fuzz(func(t *testing.T, s string) {
		check := func(list []string, text string) {
			if len(list) > maxDomains {
				t.Fatalf("%d domains", len(list))
			}
			text = strings.ToLower(text)
			for i, d := range list {
				if !isDomain(d) || slices.Contains(list[:i], d) || !strings.Contains(text, d) {
					t.Fatalf("%q of %q", d, text)
				}
			}
		}
		if !strings.Contains(s, "/") { // the fuzzer is to read no files
			list, _ := parseDomains(s)
			check(list, s)
		}
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		list, notes := parseDomains("texthash:" + path)
		check(list, s)
		if len(notes) > 0 {
			t.Fatal(notes)
		}
	})
}
