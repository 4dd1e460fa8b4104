package main

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/mxshield/mxshield/agent/control"
)

// TestNames: a host's name stands for its addresses where they are explained, and not where something is changed.
func TestNames(t *testing.T) {
	var said bytes.Buffer
	c := &ctl{err: &said, resolve: func(_ context.Context, name string) ([]string, error) {
		if name == "mail.example.org" {
			return []string{"192.0.2.7", "2001:db8::7"}, nil
		}
		return nil, errors.New("no such host")
	}}
	got, err := c.named(t.Context(), []string{"198.18.0.1", "mail.example.org", "[198.18.0.2]", "::ffff:198.18.0.3", "198.18.0.0/24", "2001:db8::", "nonsense", "192.0.2.300"})
	want := []string{"198.18.0.1", "192.0.2.7", "2001:db8::7", "198.18.0.2", "::ffff:198.18.0.3", "198.18.0.0/24", "2001:db8::", "nonsense", "192.0.2.300"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v; want %q", got, err, want)
	}
	if said.String() != "mail.example.org is 192.0.2.7, 2001:db8::7\n" {
		t.Errorf("said %q", said.String())
	}
	for _, bad := range []string{"mail.example.net", "x.y"} {
		if got, err := c.named(t.Context(), []string{bad}); err == nil || control.Hint(err) == "" {
			t.Errorf("%s: %q, %v", bad, got, err)
		}
	}
	if got, err := c.addresses(t.Context(), "unblock", []string{"[198.18.0.2]", "2001:db8::/64"}); err != nil || !slices.Equal(got, []string{"198.18.0.2", "2001:db8::/64"}) {
		t.Errorf("%q, %v", got, err)
	}
	_, err = c.addresses(t.Context(), "unblock", []string{"mail.example.org"})
	if err == nil || !strings.HasSuffix(control.Hint(err), "mxshieldctl unblock 192.0.2.7 2001:db8::7") {
		t.Errorf("%v, hint %q", err, control.Hint(err))
	}
	if _, err = c.addresses(t.Context(), "unblock", []string{"x.y"}); err == nil || control.Hint(err) != "give the address" {
		t.Errorf("%v, hint %q", err, control.Hint(err))
	}
}

func TestNearest(t *testing.T) {
	app := new(ctl).app()
	for word, want := range map[string]string{
		"unblok": "unblock", "blcok": "block", "lst": "list", "satus": "status", "peer": "peers", "looku": "lookup", "frobnicate": "", "x": "", "of": "off",
		strings.Repeat("block", 1000): "",
	} {
		if got := nearest(word, app.Commands); got != want {
			t.Errorf("%.40s: %q, want %q", word, got, want)
		}
	}
	for _, to := range otherWords {
		c := app.Command(strings.Fields(to)[0])
		if c == nil || len(strings.Fields(to)) == 2 && c.Subcommands == nil {
			t.Errorf("%s is no command", to)
		}
	}
	for from := range otherWords {
		if app.Command(from) != nil {
			t.Errorf("%s is a command", from)
		}
	}
}
