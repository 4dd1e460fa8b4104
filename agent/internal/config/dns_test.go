package config

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestDNS(t *testing.T) {
	c, err := Parse("conf", []byte(`dns:
  resolvers: [127.0.0.1, "[::1]:5353"]
  before_accept: false
  lists:
    - {zone: zen.spamhaus.org}
    - {zone: BL.example.net., codes: {"127.0.0.2": 60, "127.0.0.[4..7]": -30.5}, daily: 500, rate: 3}
    - "bl.example.org=127.0.0.[2..11]*2"
    - psbl.surriel.com
    - {zone: list.example.com, codes: {127.0.0.2: 1}, key_file: /etc/key}
`))
	if err != nil {
		t.Fatal(err)
	}
	d := c.DNS
	if len(d.Resolvers) != 2 || d.Resolvers[0].String() != "127.0.0.1:53" || d.Resolvers[1].String() != "[::1]:5353" || len(d.Lists) != 5 {
		t.Fatalf("%+v", d)
	}
	points := func(i int, code string) float64 {
		p, _ := d.Lists[i].Points([]netip.Addr{netip.MustParseAddr(code)})
		return p
	}
	for _, x := range []struct {
		list int
		code string
		want float64
	}{
		{0, "127.0.0.2", 80}, {0, "127.0.0.10", 0}, {0, "127.0.0.11", 0}, {0, "127.0.0.99", 0},
		{1, "127.0.0.2", 60}, {1, "127.0.0.5", -30.5}, {1, "127.0.0.8", 0}, {2, "127.0.0.11", 70}, {2, "127.0.0.12", 0}, {3, "127.0.0.2", 35},
	} {
		if got := points(x.list, x.code); got != x.want {
			t.Errorf("%s of %s: %v points, want %v", x.code, d.Lists[x.list].Name, got, x.want)
		}
	}
	if l := d.Lists[1]; l.Zone != "bl.example.net" || l.Daily != 500 || l.Rate != 3 {
		t.Errorf("%+v", l)
	}
}

func TestDNSFaults(t *testing.T) {
	for _, x := range []struct {
		text string
		line int
		want string
	}{
		{"dns:\n  before_accept: true\n", 2, "no list to ask"},
		{"dns:\n  before_accept: 1\n  lists: []\n", 2, "no list to ask"},
		{"dns:\n  before_accept: soon\n", 2, "neither true"},
		{"dns:\n  before_accept: 0\n", 2, "neither true"},
		{"dns:\n  before_accept: -60\n", 2, "neither true"},
		{"dns:\n  before_accept: .nan\n", 2, "neither true"},
		{"dns:\n  before_accept: {from: 60}\n", 2, "neither true"},
		{"dns:\n  before_accept: true\n  lists: [psbl.surriel.com]\n", 2, "35 points at most"},
		{"dns:\n  before_accept: 36\n  lists: [psbl.surriel.com]\n", 2, "35 points at most"},
		{"dns:\n  resolver: [127.0.0.1]\n", 2, "resolver"},
		{"dns:\n  resolvers: [localhost]\n", 2, "no address"},
		{"dns:\n  resolvers: [0.0.0.0]\n", 2, "no address"},
		{"dns:\n  resolvers: [127.0.0.1, \"127.0.0.1:53\"]\n", 2, "twice"},
		{"dns:\n  lists:\n    - {zone: bl.example.net}\n", 3, "no codes"},
		{"dns:\n  lists:\n    - zone: bl.example.net\n      codes: {\"192.0.2.1\": 60}\n", 4, "begin with 127"},
		{"dns:\n  lists:\n    - zone: bl.example.net\n      codes: {\"127.0.0.2\": much}\n", 4, "out of range"},
		{"dns:\n  lists:\n    - zone: bl.example.net\n      codes: {\"127.0.0.[2..\": 1}\n", 4, "not closed"},
		{"dns:\n  lists:\n    - {zone: zen.spamhaus.org, weight: 3}\n", 3, "unknown"},
		{"dns:\n  lists:\n    - {zone: zen.dq.spamhaus.net}\n", 3, "key_file"},
		{"dns:\n  lists:\n    - {zone: dnsbl.sorbs.net}\n", 3, "shut down"},
		{"dns:\n  lists:\n    - zen.spamhaus.org\n    - zen.spamhaus.org\n", 4, "twice"},
		{"dns:\n  lists:\n    - zen.spamhaus.org\n    - {zone: xbl.spamhaus.org, codes: {\"127.0.0.4\": 1}}\n", 4, "part of"},
		{"dns:\n  lists: [5]\n", 2, "neither"},
		{"dns:\n  lists: [\"bl.example.net*x\"]\n", 2, "no weight"},
	} {
		_, err := Parse("conf", []byte(x.text))
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%q: %v, want %q", x.text, err, x.want)
			continue
		}
		if e.Line != x.line {
			t.Errorf("%q: line %d: %v", x.text, e.Line, err)
		}
	}
	if _, err := Parse("conf", []byte("dns:\n  lists:\n    - {zone: zen.spamhaus.org}\n    - {zone: zen.dq.spamhaus.net, key_file: /etc/key}\n")); err == nil || !strings.Contains(err.Error(), "count twice") {
		t.Errorf("ZEN twice: %v", err)
	}
	const key = "secretkeyabcdefgh"
	for _, text := range []string{"zone: " + key + ".zen.dq.spamhaus.net", key + ".zen.dq.spamhaus.net=127.0.0.2"} {
		if _, err := Parse("conf", []byte("dns:\n  lists:\n    - "+text+"\n")); err == nil || strings.Contains(err.Error(), key) || !strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestBeforeAccept(t *testing.T) {
	for text, want := range map[string]float64{"false": 0, "true": 90, "60": 60, "60.5": 60.5} {
		c, err := Parse("conf", []byte("block: {threshold: 90}\ndns:\n  before_accept: "+text+"\n  lists: [zen.spamhaus.org]\n"))
		if err != nil {
			t.Fatal(err)
		}
		if d := c.DNS; d.BeforeAccept != (want > 0) || d.BeforeAccept && d.BeforePoints(c.Block.Threshold) != want {
			t.Errorf("%s: %+v", text, d)
		}
	}
}
