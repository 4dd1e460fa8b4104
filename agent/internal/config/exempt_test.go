package config

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestExempt(t *testing.T) {
	c, err := Parse("x", []byte("exempt: [192.0.2.26, 198.51.100.0/28, \"2001:db8::/48\", \"::ffff:192.0.2.27\"]\n"))
	if err != nil || fmt.Sprint(c.Exempt) != "[192.0.2.26/32 198.51.100.0/28 2001:db8::/48 192.0.2.27/32]" {
		t.Errorf("%v, %v", c.Exempt, err)
	}
	if c, err := Parse("x", []byte("exempt: []\n")); err != nil || len(c.Exempt) != 0 {
		t.Errorf("empty: %v, %v", c.Exempt, err)
	}
	many := "exempt:\n"
	for i := range maxExempt + 1 {
		many += fmt.Sprintf("  - 192.0.2.%d\n", i)
	}
	for _, bad := range []struct {
		text, says string
		line       int
	}{
		{"exempt:\n  - 192.0.2.26\n  - mail.example.org\n", "mail.example.org", 3},
		{"exempt: [192.0.2.26/24]\n", "host bits", 1},
		{"exempt: [0.0.0.0/0]\n", "every address", 1},
		{"exempt: [\"::/0\"]\n", "every address", 1},
		{"exempt: [192.0.2.26, 192.0.2.26/32]\n", "twice", 1},
		{many, "17 IPv4", 1},
	} {
		_, err := Parse("x", []byte(bad.text))
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(e.Text, bad.says) || !strings.HasPrefix(e.Text, "exempt") || e.Hint == "" || bad.text != many && e.Line != bad.line {
			t.Errorf("%q: %v", bad.text, err)
		}
	}
}
