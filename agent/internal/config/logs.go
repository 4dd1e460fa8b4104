package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/mxshield/mxshield/agent/internal/maillog"
)

// userName is what a user or group may be called, as useradd(8) has it, in either case.
var userName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]{0,31}$`)

// logs checks the inputs.
func (c *checker) logs(f *file) {
	stood := map[string]bool{}
	for i, l := range f.Logs {
		at := fmt.Sprintf("$.logs[%d]", i)
		out := Log{File: l.File, Journal: l.Journal, Users: l.Users, Group: l.Group, Stdin: l.Stdin}
		set := 0
		for _, is := range []bool{l.File != "", l.Journal != "", l.Syslog != "", l.Stdin} {
			if is {
				set++
			}
		}
		if set != 1 {
			c.fault(at, "for example {file: /var/log/mail.log}, {file: /var/log/exim4/*log}, {journal: \"postfix@-.service\"}, {syslog: \"unixgram:/run/mxshield/log\"} or {stdin: true}", "needs one of file, journal, syslog, stdin")
			continue
		}
		if (l.Users != nil || l.Group != "") && !strings.HasPrefix(l.Syslog, "unixgram:") {
			c.fault(at, "for example {syslog: \"unixgram:/run/mxshield/log\", users: [syslog]}", "users and group are about a unix syslog socket")
			continue
		}
		good := true
		switch {
		case l.File != "":
			good = c.logFile(at, l.File)
			out.File = filepath.Clean(l.File)
		case l.Journal != "":
			if good = !strings.HasPrefix(l.Journal, "-"); !good {
				c.fault(at+".journal", "a unit name such as postfix@-.service", "%q is no unit name", l.Journal)
			}
		case l.Syslog != "":
			out.Network, out.Syslog, good = c.syslog(at, l.Syslog)
			for _, u := range append([]string{l.Group}, l.Users...) {
				if u != "" && !userName.MatchString(u) {
					c.fault(at, "names as they stand in /etc/passwd and /etc/group", "%.40q is no name of a user or group", u)
					good = false
				}
			}
		}
		if !good {
			continue
		}
		key := fmt.Sprint(out.File, "\x00", out.Journal, "\x00", out.Network, out.Syslog, "\x00", out.Stdin)
		if stood[key] {
			c.fault(at, "lines would count twice", "the same input stands there twice")
			continue
		}
		stood[key] = true
		if l.MTA != "" {
			var ok bool
			if out.MTA, ok = maillog.ParseMTA(l.MTA); !ok {
				c.fault(at+".mta", "auto, postfix, exim, sendmail, opensmtpd, dovecot or courier", "%.40q is unknown", l.MTA)
			}
		}
		c.cfg.Logs = append(c.cfg.Logs, out)
	}
	// A file that a pattern matches too would be read twice.
	for i, l := range c.cfg.Logs {
		for j, o := range c.cfg.Logs {
			if i == j || l.File == "" || !isGlob(o.File) || isGlob(l.File) {
				continue
			}
			if ok, _ := filepath.Match(o.File, l.File); ok {
				c.fault("$.logs", "lines would count twice: take one out", "%s is matched by %s too", l.File, o.File)
			}
		}
	}
}

func isGlob(path string) bool { return strings.ContainsAny(path, "*?[") }

func (c *checker) logFile(at, path string) bool {
	if !filepath.IsAbs(path) {
		c.fault(at+".file", "give the whole path", "%q is not absolute", path)
		return false
	}
	if _, err := filepath.Match(path, ""); err != nil {
		c.fault(at+".file", "*, ? and [a-z] as in the shell; \\ before one that is meant itself", "%q is no pattern", path)
		return false
	}
	return true
}

// syslog takes "unixgram:/path" or "udp:127.0.0.1:5514" apart.
func (c *checker) syslog(at, s string) (network, address string, ok bool) {
	network, address, _ = strings.Cut(s, ":")
	switch network {
	case "unixgram":
		switch {
		case !filepath.IsAbs(address):
			c.fault(at+".syslog", "for example unixgram:/run/mxshield/log", "%.120q is not an absolute path", address)
		case len(filepath.Clean(address)) > 107:
			c.fault(at+".syslog", "unix(7) allows 107 bytes", "the path has %d bytes", len(address))
		case filepath.Clean(address) == "/dev/log":
			c.fault(at+".syslog", "let it pass the mail log on to unixgram:/run/mxshield/log; README.md has the line for rsyslog and syslog-ng", "/dev/log belongs to the syslog daemon or journald")
		default:
			return network, filepath.Clean(address), true
		}
	case "udp":
		a, err := netip.ParseAddrPort(address)
		switch {
		case err != nil || a.Port() == 0 || a.Addr().Zone() != "":
			c.fault(at+".syslog", "for example udp:127.0.0.1:5514 or udp:[::1]:5514", "%.120q is no address and port", address)
		case !a.Addr().IsLoopback():
			c.fault(at+".syslog", "use udp:127.0.0.1:5514: what comes over a network can be forged by anybody, so a syslog daemon has to receive it and pass it on", "%s is not a loopback address", a.Addr())
		default:
			return network, a.String(), true
		}
	default:
		c.fault(at+".syslog", "for example unixgram:/run/mxshield/log", "%.120q: unixgram: or udp: comes first", s)
	}
	return "", "", false
}
