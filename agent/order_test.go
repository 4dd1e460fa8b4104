package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mxshield/mxshield/agent/control"
)

// TestLogsOfADayInStep: two logs of many hours are read at once, as at the first start. One is four times as long. A failed
// login that both tell of counts once: neither is read far ahead of the other.
func TestLogsOfADayInStep(t *testing.T) {
	dir := t.TempDir()
	logs := filepath.Join(dir, "log")
	if err := os.Mkdir(logs, 0o700); err != nil {
		t.Fatal(err)
	}
	var mail, dovecot strings.Builder
	const n = 6000
	at := time.Now().Add(-n * 10 * time.Second)
	for i := range n {
		a := fmt.Sprintf("101.%d.%d.7", i%90/16, i%90%16*16)
		stamp := at.Add(time.Duration(i) * 10 * time.Second).UTC().Format("2006-01-02T15:04:05.000000Z")
		fmt.Fprintf(&mail, "%s mx1 postfix/submission/smtpd[7]: warning: unknown[%s]: SASL LOGIN authentication failed: UGFzc3dvcmQ6, sasl_username=user%d@example.org\n", stamp, a, i)
		fmt.Fprintf(&dovecot, "%s mx1 dovecot: auth: passwd-file(user%d@example.org,%s): Password mismatch\n", stamp, i, a)
		for range 7 {
			fmt.Fprintf(&mail, "%s mx1 postfix/anvil[9]: statistics: max cache size 3\n", stamp)
		}
	}
	for name, text := range map[string]string{"mail.log": mail.String(), "dovecot.log": dovecot.String()} {
		if err := os.WriteFile(filepath.Join(logs, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a := startAgent(t, dir, fmt.Sprintf("  - {file: %s/*.log}\n", logs))
	s := a.awaitStatus("at the end", func(s *control.Status) bool { return len(s.Inputs) == 3 && s.Inputs[0].Lines == 9*n })
	if got := s.Events["auth_failure"]; got != n {
		t.Errorf("%d failed logins count %d", n, got)
	}
}
