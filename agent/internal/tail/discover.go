package tail

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// DiscoverOptions says where to look. Zero values mean the defaults; tests set them.
type DiscoverOptions struct {
	Postconf   string   // name or path of postconf; default "postconf"
	Journalctl []string // how journalctl is called; default {"journalctl"}
	Files      []string // default /var/log/mail.log, /var/log/maillog
	Now        func() time.Time
}

func (o *DiscoverOptions) defaults() {
	if o.Postconf == "" {
		o.Postconf = "postconf"
	}
	if len(o.Journalctl) == 0 {
		o.Journalctl = []string{"journalctl"}
	}
	if len(o.Files) == 0 {
		o.Files = []string{"/var/log/mail.log", "/var/log/maillog"}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
}

// Discovered is the input to follow: File or, if that is empty, the journal of Units.
type Discovered struct {
	File     string
	Units    []string
	Why      string   // in words, for people
	Warnings []string // what to know or mend; may be empty
}

// Open returns the input.
func (d Discovered) Open(fo FileOptions, jo JournalOptions) Input {
	if d.File != "" {
		return NewFile(d.File, fo)
	}
	if jo.Name == "" {
		jo.Name = "postfix" // not the units: they may be others the next time
	}
	return NewJournal(d.Units, jo)
}

const forgeable = "any local user can write lines into this file through syslog (logger -t postfix/smtpd): maillog_file in " +
	"Postfix's main.cf avoids that"

// Discover decides which input to follow when none is configured: the log file that Postfix writes itself (no local user
// can write to it), else the first existing one of syslog's, else the journal of Postfix's units, else syslog's first
// file, which may come to be. It runs postconf and journalctl, for at most 5 s each. The error is ctx's.
func Discover(ctx context.Context, opts DiscoverOptions) (Discovered, error) {
	opts.defaults()
	var warnings []string
	toStdout := false
	value, err := run(ctx, opts.Postconf, "-x", "-h", "maillog_file")
	switch value = strings.TrimSpace(value); {
	case ctx.Err() != nil:
		return Discovered{}, ctx.Err()
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, os.ErrNotExist): // no Postfix here
	case err != nil:
		warnings = append(warnings, fmt.Sprintf("could not ask Postfix for its log file: %v", err))
	case value == "/dev/stdout":
		toStdout = true
	case strings.HasPrefix(value, "/") && !strings.ContainsAny(value, "\n\r"):
		return Discovered{File: value, Why: "Postfix writes its log there itself (maillog_file)", Warnings: warnings}, nil
	case value != "":
		warnings = append(warnings, fmt.Sprintf("Postfix's maillog_file is not a path: %.100q", value))
	}

	if toStdout {
		warnings = append(warnings, "Postfix logs to its standard output: that can be followed only if systemd's journal gets it")
	} else {
		for _, path := range opts.Files {
			fi, err := os.Stat(path)
			if err != nil || fi.IsDir() {
				continue
			}
			warnings = append(warnings, forgeable)
			if age := opts.Now().Sub(fi.ModTime()); age > 7*24*time.Hour {
				warnings = append(warnings, fmt.Sprintf("%s was last written %d days ago: if Postfix logs elsewhere by now, name that "+
					"place in the config (logs:) or remove the file", path, int(age/(24*time.Hour))))
			}
			return Discovered{File: path, Why: "it is the first of " + strings.Join(opts.Files, ", ") + " that exists", Warnings: warnings}, nil
		}
	}

	if _, err := exec.LookPath(opts.Journalctl[0]); err == nil {
		units := []string{"postfix.service", "postfix@-.service"}
		why := "there is no log file, but a systemd journal"
		args := append(slices.Clone(opts.Journalctl), "--no-pager", "--field=_SYSTEMD_UNIT")
		found, err := run(ctx, args[0], args[1:]...)
		if ctx.Err() != nil {
			return Discovered{}, ctx.Err()
		}
		if err != nil {
			warnings = append(warnings, fmt.Sprintf("could not ask the journal for its units: %v", err))
		}
		seen := 0
		for u := range strings.Lines(found) {
			if u = strings.TrimSpace(u); strings.HasPrefix(u, "postfix") && strings.HasSuffix(u, ".service") && len(u) < 256 {
				seen++
				if !slices.Contains(units, u) && len(units) < 64 {
					units = append(units, u)
				}
			}
		}
		if err == nil && seen == 0 {
			why += " (in which Postfix has written nothing yet)"
		}
		slices.Sort(units)
		return Discovered{Units: units, Why: why, Warnings: warnings}, nil
	}
	return Discovered{File: opts.Files[0], Why: "there is neither a log file nor a systemd journal; waiting for this one to appear",
		Warnings: warnings}, nil
}

// run returns the standard output, at most 64 KiB of it, of a command that is given 5 s.
func run(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var out firstBytes
	var stderr lastBytes
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		if said := strings.TrimSpace(stderr.String()); said != "" {
			return "", fmt.Errorf("%s: %w: %.200q", name, err, said)
		}
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return out.String(), nil
}

// firstBytes keeps the first 64 KiB that are written to it. (The buffer is a field, lest ReadFrom go round the limit.)
type firstBytes struct{ b bytes.Buffer }

func (f *firstBytes) Write(p []byte) (int, error) {
	f.b.Write(p[:min(len(p), 64<<10-f.b.Len())])
	return len(p), nil
}

func (f *firstBytes) String() string { return f.b.String() }

// MyNetworks asks Postfix for mynetworks. notes say, for people, what of it could not be used: names of tables and files,
// and exclusions. The error wraps exec.ErrNotFound if there is no Postfix.
func MyNetworks(ctx context.Context, opts DiscoverOptions) (nets []netip.Prefix, notes []string, err error) {
	opts.defaults()
	value, err := run(ctx, opts.Postconf, "-x", "-h", "mynetworks")
	if err != nil {
		return nil, nil, err
	}
	nets, notes = parseNetworks(value)
	return nets, notes, nil
}

// parseNetworks reads the value of mynetworks:
//
//	127.0.0.0/8 [::ffff:127.0.0.0]/104, [::1]/128 192.0.2.7 !192.0.2.8 hash:/etc/postfix/networks
func parseNetworks(value string) (nets []netip.Prefix, notes []string) {
	for _, word := range strings.FieldsFunc(value, func(r rune) bool { return strings.ContainsRune(" \t\r\n,", r) }) {
		p, ok := parseNetwork(word)
		switch {
		case ok:
			if !slices.Contains(nets, p) {
				nets = append(nets, p)
			}
		case strings.HasPrefix(word, "!"):
			notes = append(notes, fmt.Sprintf("mynetworks: the exclusion %.100q is not understood; if a network covers it, it counts as one of ours", word))
		default:
			notes = append(notes, fmt.Sprintf("mynetworks: %.100q is not understood; write networks that must never be blocked under allow in the config", word))
		}
	}
	return nets, notes
}

func parseNetwork(word string) (netip.Prefix, bool) {
	addrText, bitsText, hasBits := strings.Cut(word, "/")
	if inner, ok := strings.CutPrefix(addrText, "["); ok {
		if addrText, ok = strings.CutSuffix(inner, "]"); !ok {
			return netip.Prefix{}, false
		}
	}
	addr, err := netip.ParseAddr(addrText)
	if err != nil || addr.Zone() != "" {
		return netip.Prefix{}, false
	}
	p := netip.PrefixFrom(addr, addr.BitLen())
	if hasBits {
		if p, err = netip.ParsePrefix(addr.String() + "/" + bitsText); err != nil {
			return netip.Prefix{}, false
		}
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, false
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), true
}
