package config

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/internal/maillog"
)

func TestEmptyIsDefault(t *testing.T) {
	for _, src := range []string{"", "\n", "# nothing\n", "---\n"} {
		c, err := Parse("f", []byte(src))
		if err != nil || !reflect.DeepEqual(c, Default()) {
			t.Errorf("%q: %v, %+v", src, err, c)
		}
	}
	path := filepath.Join(t.TempDir(), "none.yaml")
	if c, err := Read(path, false); err != nil || !reflect.DeepEqual(c, Default()) {
		t.Errorf("a missing default file: %v", err)
	}
	var e *Error
	if _, err := Read(path, true); !errors.As(err, &e) || e.Hint == "" {
		t.Errorf("a missing file that was named: %v", err)
	}
}

// TestSampleIsDefault: what the sample file shows in comments are the defaults.
func TestSampleIsDefault(t *testing.T) {
	b, err := os.ReadFile("../../../scripts/mxshield.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var y []string
	for line := range strings.Lines(string(b)) {
		if l, ok := strings.CutPrefix(line, "# "); ok && (strings.Contains(l, ":") && !strings.Contains(l, "Every key") || strings.HasPrefix(l, "  ")) && !strings.HasPrefix(l, "`") && !strings.HasPrefix(l, "allow:") && !strings.HasPrefix(l, "dns:") && !strings.HasPrefix(l, "cluster:") && !strings.HasPrefix(l, "exempt:") && !strings.HasPrefix(l, "logs:") && !strings.HasPrefix(l, "  -") {
			y = append(y, l)
		}
	}
	c, err := Parse("sample", []byte(strings.Join(y, "")))
	if err != nil || !reflect.DeepEqual(c, Default()) || len(y) < 6 {
		t.Errorf("%v\n%s\n%+v", err, strings.Join(y, ""), c)
	}
}

func TestWhole(t *testing.T) {
	c, err := Parse("f", []byte(`interfaces: [eth0, "ens*"]
attach: generic
ports: {mx: [25, 2525], submission: []}
logs:
  - {file: /var/log/mail.log, mta: postfix}
  - {journal: "postfix@-.service"}
block: {for: 1d, max: 1w, threshold: 50, half_life: 30m, ipv6_prefix: 56, private: true}
weights: {unknown_recipient: 5, pregreet: 0}
allow:
  - 192.0.2.0/24
  - 2001:db8::1
state: /tmp/s/state.db
socket: /tmp/s/sock
pins: /sys/fs/bpf/x
dry_run: true
`))
	if err != nil {
		t.Fatal(err)
	}
	w := Default().Weights
	w[maillog.UnknownRecipient], w[maillog.Pregreet] = 5, 0
	if c.Block.For != 24*time.Hour || c.Block.Max != 168*time.Hour || c.Weights != w || !c.DryRun || len(c.Logs) != 2 ||
		len(c.Allow) != 2 || c.Allow[0].Line != 10 || c.Allow[1].Prefix.String() != "2001:db8::1/128" || len(c.SubmissionPorts) != 0 || c.MXPorts[1] != 2525 {
		t.Errorf("%+v", c)
	}
}

func TestLogs(t *testing.T) {
	c, err := Parse("f", []byte(`logs:
  - {file: /var/log/exim4/*log, mta: exim}
  - {syslog: "unixgram:/run/mxshield/log", users: [syslog, Debian-exim], group: adm}
  - {syslog: "udp:[::1]:5514"}
  - {stdin: true}
`))
	want := []Log{
		{File: "/var/log/exim4/*log", MTA: maillog.Exim},
		{Network: "unixgram", Syslog: "/run/mxshield/log", Users: []string{"syslog", "Debian-exim"}, Group: "adm"},
		{Network: "udp", Syslog: "[::1]:5514"}, {Stdin: true},
	}
	if err != nil || !reflect.DeepEqual(c.Logs, want) {
		t.Errorf("%v, %+v", err, c)
	}
}

// TestFaults: each fault has its line and a hint, and names what is wrong.
func TestFaults(t *testing.T) {
	for _, c := range []struct {
		src  string
		line int
		says string
	}{
		{"interfaces: [\n", 1, ""},
		{"\tattach: auto\n", 1, ""},
		{"attach: auto\nattach: native\n", 2, "already defined"},
		{"dry_run: maybe\n", 1, "there is a text where true or false is expected"},
		{"# x\nfoo: 1\n", 2, "\"foo\" is no key"},
		{"block:\n  fro: 1h\n", 2, "fro"},
		{"dns:\n  own: [192.0.2.1]\n", 2, "no lists"},
		{"dns:\n  lists: [zen.spamhaus.org]\n  own: [192.0.2.1, 10.0.0.1]\n", 3, "no list"},
		{"dns:\n  lists: [zen.spamhaus.org]\n  own: [192.0.2.0/24, 192.0.2.7]\n", 3, "twice"},
		{"dns:\n  lists: [zen.spamhaus.org]\n  own: [192.0.2.0/23]\n", 3, "more than 256"},
		{"dns:\n  lists: [zen.spamhaus.org]\n  own: [\"2001:db8::/55\"]\n", 3, "more than 256"},
		{"dns:\n  lists: [zen.spamhaus.org]\n  own: [192.0.2.7]\n  own_hook: notify -x\n", 4, "no path"},
		{"dns:\n  lists: [zen.spamhaus.org]\n  own_hook: /bin/true\n", 3, "no own addresses"},
		{"own_domains:\n  - example.org\n  - EXAMPLE.org.\n", 3, "twice"},
		{"own_domains: [org]\n", 1, "top-level"},
		{"dns:\n  publish: {listen: \"127.0.0.1:5353\"}\n", 2, "no DNS name"},
		{"dns:\n  publish: {zone: org}\n", 2, "top-level"},
		{"dns:\n  publish:\n    zone: bl.example.org\n    listen: 127.0.0.1\n", 4, "no place to listen on"},
		{"dns:\n  publish: {zone: bl.example.org, listen: \"0.0.0.0:53\"}\n", 2, "nobody is named"},
		{"dns:\n  publish: {zone: bl.example.org, clients: [0.0.0.0/0]}\n", 2, "wider than /8"},
		{"dns:\n  publish: {zone: bl.example.org, host: x}\n", 2, "host"},
		{"dns:\n  lists: [\"BL.example.org=127.0.0.2\"]\n  publish: {zone: bl.example.org}\n", 2, "serves"},
		{"traps: [a@example.org, nobody]\n", 1, "no domain"},
		{"traps:\n  - a@example.org\n  - \"a b@example.org\"\n", 3, "not a trap recipient"},
		{"traps: [\"*@example.org\"]\n", 1, "a * stands only"},
		{"weights: {recipient: 1}\n", 1, "no weight"},
		{"limits: {syn_total: -5}\n", 1, "out of range"},
		{"limits:\n  syn_per_source: 1000001\n", 2, "out of range"},
		{"limits:\n  syn_total: 5\n  syn_per_source: 6\n", 3, "more than syn_total"},
		{"limits: {syn_total: many}\n", 1, "syn_total: there is a text where a number is expected"},
		{"limits: {syn: 5}\n", 1, "syn"},
		{"metrics: localhost:9725\n", 1, "metrics: \"localhost:9725\" is no place to listen on"},
		{"metrics: 127.0.0.1\n", 1, "no place to listen on"},
		{"metrics: 127.0.0.1:0\n", 1, "no place to listen on"},
		{"metrics: [9725]\n", 1, "metrics: there is a list where a text is expected"},
		{"allow:\n  - 192.0.2.1\n  - spf:org\n", 3, "top-level"},
		{"allow: [spf:example.org, \"spf:EXAMPLE.org.\"]\n", 1, "twice"},
		{"allow:\n  - 192.0.2.1\n  - domain:org\n", 3, "top-level"},
		{"logs:\n  - {syslog: \"unixgram:x\"}\n", 2, "absolute"},
		{"logs:\n  - {syslog: /run/mxshield/log}\n", 2, "comes first"},
		{"logs:\n  - {syslog: \"unixgram:/dev/log\"}\n", 2, "belongs to"},
		{"logs:\n  - {syslog: \"unixgram:/" + strings.Repeat("x", 107) + "\"}\n", 2, "108 bytes"},
		{"logs:\n  - {syslog: \"udp:0.0.0.0:514\"}\n", 2, "not a loopback"},
		{"logs:\n  - {syslog: \"udp:[2001:db8::1]:514\"}\n", 2, "not a loopback"},
		{"logs:\n  - {syslog: \"udp:127.0.0.1\"}\n", 2, "no address and port"},
		{"logs:\n  - {syslog: \"udp:localhost:514\"}\n", 2, "no address and port"},
		{"logs:\n  - {syslog: \"unixgram:/a\", users: [\"a b\"]}\n", 2, "no name"},
		{"logs:\n  - {file: /a, users: [syslog]}\n", 2, "about a unix syslog socket"},
		{"logs:\n  - {stdin: true}\n  - {stdin: true}\n", 3, "twice"},
		{"logs:\n  - {stdin: false}\n", 2, "one of"},
		{"logs:\n  - {file: \"/a[\"}\n", 2, "no pattern"},
		{"logs:\n  - {file: /var/log/mail.log}\n  - {file: /var/log/*.log}\n", 2, "matched by"},
		{"interfaces: []\n", 1, "empty"},
		{"interfaces: [\"a b\"]\n", 1, "interface name"},
		{"attach: fast\n", 1, "fast"},
		{"ports: {mx: [0]}\n", 1, "no port"},
		{"ports: {mx: [25, 25]}\n", 1, "twice"},
		{"ports: {mx: [25], submission: [25]}\n", 1, "port 25"},
		{"ports: {mx: [], submission: []}\n", 1, "no port"},
		{"logs:\n  - {file: mail.log}\n", 2, "absolute"},
		{"logs:\n  - {file: /a, journal: b}\n", 2, "one of"},
		{"logs:\n  - {file: /a}\n  - {file: /a}\n", 3, "twice"},
		{"logs:\n  - {journal: \"--rotate\"}\n", 2, "unit name"},
		{"logs:\n  - {file: /a, mta: qmail}\n", 2, "qmail"},
		{"block:\n  for: soon\n", 2, "soon"},
		{"block:\n  for: 30d\n", 2, "out of range"},
		{"block:\n  for: -1h\n", 2, "duration"},
		{"block: {for: 3d, max: 1d}\n", 1, "less than"},
		{"block:\n  threshold: 0\n", 2, "out of range"},
		{"block:\n  threshold: .nan\n", 2, "out of range"},
		{"block:\n  ipv6_prefix: 128\n", 2, "out of range"},
		{"weights:\n  sneezing: 1\n", 2, "sneezing"},
		{"weights:\n  dns_listed: 1\n", 2, "no weight"},
		{"weights:\n  pregreet: -1\n", 2, "out of range"},
		{"weights:\n  delivered: 1\n", 2, "no weight"},
		{"allow:\n  - 192.0.2.0/33\n", 2, "neither"},
		{"allow:\n  - 192.0.2.7/24\n", 2, "host bits"},
		{"allow:\n  - 0.0.0.0/0\n", 2, "wider"},
		{"allow: 192.0.2.1\n", 1, "allow: text was used where list is expected"},
		{"state: state.db\n", 1, "absolute"},
		{"socket: /" + strings.Repeat("x", 120) + "\n", 1, "bytes"},
	} {
		cfg, err := Parse("f.yaml", []byte(c.src))
		var e *Error
		if cfg != nil || !errors.As(err, &e) {
			t.Errorf("%q: %v, want an error", c.src, err)
			continue
		}
		if c.line != 0 && e.Line != c.line || !strings.Contains(err.Error(), c.says) || e.Hint == "" {
			t.Errorf("%q: line %d, %q, hint %q; want line %d and %q", c.src, e.Line, err, e.Hint, c.line, c.says)
		}
	}
}

func TestAllFaultsAtOnce(t *testing.T) {
	_, err := Parse("f", []byte("attach: x\nstate: y\nallow: [z]\n"))
	if n := strings.Count(err.Error(), "\n") + 1; n != 3 {
		t.Errorf("%d faults, want 3:\n%v", n, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "allow: [192.0.2.1]\n", "block: {for: 1h}\n", "a: &a [*a]\n", "logs:\n - {file: /x}\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse("f", b)
		if (c == nil) == (err == nil) {
			t.Fatalf("%v, %v", c, err)
		}
		if c != nil && (len(c.Interfaces) == 0 || len(c.MXPorts)+len(c.SubmissionPorts) == 0 || c.Block.For <= 0 || c.Block.Max < c.Block.For) {
			t.Fatalf("%+v", c)
		}
	})
}

func TestLimits(t *testing.T) {
	for src, want := range map[string]Limits{
		"": {}, "limits: {}\n": {}, "limits: {syn_per_source: 5, syn_total: 500}\n": {5, 500}, "limits: {syn_per_source: 7}\n": {7, 0},
	} {
		c, err := Parse("f", []byte(src))
		if err != nil || c.Limits != want {
			t.Errorf("%q: %+v, %v", src, c, err)
		}
	}
}
