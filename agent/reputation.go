package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/agent/internal/dnslist"
	"github.com/mxshield/mxshield/agent/internal/reputation"
	"github.com/mxshield/mxshield/agent/internal/store"
)

// This file wires the reputation of our own addresses: what package reputation finds goes into the audit trail, the log, status and
// the hook.

const (
	reputationKey = "reputation"
	hookTime      = 10 * time.Second
	maxHooks      = 64 // events that wait for the hook; further ones are in the log and the history only
	maxOwnWarn    = 5  // listings that status names
)

// reputationParts are the daemon's parts for that.
type reputationParts struct {
	watch    *reputation.Watch // nil without dns.own
	hooks    chan reputation.Event
	hookLost atomic.Uint64
}

// openReputation makes the watch, where dns.own names addresses.
func (d *daemon) openReputation() error {
	saved := d.pending[reputationKey]
	delete(d.pending, reputationKey)
	if len(d.cfg.DNS.Own) == 0 || d.lists == nil {
		return nil
	}
	d.hooks = make(chan reputation.Event, maxHooks)
	var err error
	d.watch, err = reputation.New(reputation.Options{Own: d.cfg.DNS.Own, Lists: d.lists, Saved: saved, Happened: d.reputed, Log: d.log})
	return err
}

// reputed notes what happened to the reputation of an own address.
func (d *daemon) reputed(e reputation.Event) {
	log := d.log.Warn
	if e.What == reputation.Delisted {
		log = d.log.Info
	}
	log("own address "+e.What, "address", e.Address, "list", e.List, "codes", e.Codes, "words", e.Words, "text", e.TXT)
	detail := e.List
	if e.Words != "" {
		detail += ": " + e.Words
	}
	d.mu.Lock()
	d.batch.Audit = append(d.batch.Audit, store.Audit{Time: e.Time, Who: "agent", Action: e.What, Prefix: netip.PrefixFrom(e.Address, e.Address.BitLen()), Detail: detail})
	d.mu.Unlock()
	d.commitSoon()
	if d.cfg.DNS.OwnHook == "" {
		return
	}
	select {
	case d.hooks <- e:
	default:
		if d.hookLost.Add(1) == 1 {
			d.log.Warn("the hook is too slow: events are only logged", "hook", d.cfg.DNS.OwnHook)
		}
	}
}

// keepReputation watches until ctx ends.
func (d *daemon) keepReputation(ctx context.Context) {
	w := d.watch
	if w == nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-ctx.Done():
				return
			case e := <-d.hooks:
				if err := runHook(ctx, d.cfg.DNS.OwnHook, d.node, e); err != nil && ctx.Err() == nil {
					d.log.Warn("the hook failed", "hook", d.cfg.DNS.OwnHook, "address", e.Address, "list", e.List, "error", err)
				}
			}
		}
	}()
	w.Run(ctx)
	<-done
}

// runHook runs a program with the event as its arguments: what, address, list, codes, words. There is no shell, nothing of it comes
// from outside but the codes, and it has little time.
func runHook(ctx context.Context, path, node string, e reputation.Event) error {
	path, err := safeProgram(path)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, hookTime)
	defer cancel()
	codes := make([]string, len(e.Codes))
	for i, a := range e.Codes {
		codes[i] = a.String()
	}
	cmd := exec.CommandContext(ctx, path, e.What, e.Address.String(), e.List, strings.Join(codes, ","), e.Words)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "MXSHIELD_NODE=" + node}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	said := &capped{}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Run(); err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			err = fmt.Errorf("it was ended after %s", hookTime)
		}
		if s := strings.TrimSpace(said.String()); s != "" {
			return fmt.Errorf("%w: %q", err, s)
		}
		return err
	}
	return nil
}

// safeProgram follows links to a program, and checks that nobody but root and this user can change it, or put another one in
// its place: it will have all our rights.
func safeProgram(path string) (string, error) {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	for at := path; ; at = filepath.Dir(at) {
		fi, err := os.Lstat(at)
		if err != nil {
			return "", err
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		loose := fi.Mode().Perm()&0o022 != 0
		switch {
		case at == path && (!fi.Mode().IsRegular() || fi.Mode().Perm()&0o111 == 0):
			return "", fmt.Errorf("%s is no program: chmod 755", at)
		case ok && st.Uid != 0 && int(st.Uid) != os.Geteuid():
			return "", fmt.Errorf("%s belongs to user %d, who could make it do anything: chown root", at, st.Uid)
		case at == path && loose, loose && fi.Mode()&os.ModeSticky == 0:
			return "", fmt.Errorf("others than its owner can write to %s: chmod 755", at)
		case at == filepath.Dir(at):
			return path, nil
		}
	}
}

// capped keeps the first 200 bytes that are written to it.
type capped struct{ b bytes.Buffer }

func (c *capped) Write(p []byte) (int, error) {
	c.b.Write(p[:min(len(p), 200-c.b.Len())])
	return len(p), nil
}

func (c *capped) String() string { return c.b.String() }

// Reputation answers reputation, of one own address or of all.
func (d *daemon) Reputation(a netip.Addr, limit int) (control.Reputation, error) {
	w := d.watch
	if w == nil {
		return control.Reputation{}, &control.Error{Status: 404, Text: "no own addresses are watched", Hint: "dns: {lists: [...], own: [192.0.2.25]} in the config names them"}
	}
	r := control.Reputation{Now: time.Now().UTC(), Own: []control.OwnAddress{}, Events: []control.ReputationEvent{}}
	for _, o := range w.Own() {
		if a.IsValid() && o.Address != a {
			continue
		}
		x := control.OwnAddress{Address: o.Address, Asked: o.Asked.UTC(), Next: o.Next.UTC(), Lists: []control.OwnStanding{}}
		for _, s := range o.Lists {
			l := control.OwnStanding{ListAnswer: listAnswer(s.Answer), Since: s.Since, Checked: s.Checked}
			l.Zone, l.Says, l.Why = s.List, string(s.Says), s.Why
			x.Lists = append(x.Lists, l)
		}
		r.Own = append(r.Own, x)
	}
	for _, e := range w.Events(a, limit) {
		r.Events = append(r.Events, control.ReputationEvent(e))
	}
	if a.IsValid() && len(r.Own)+len(r.Events) == 0 {
		return r, &control.Error{Status: 404, Text: a.String() + " is not watched and never was", Hint: "`mxshieldctl lookup` asks about any address"}
	}
	return r, nil
}

func listAnswer(r dnslist.Answer) control.ListAnswer {
	return control.ListAnswer{Zone: r.Zone, Says: string(r.Says), Codes: r.Codes, Points: r.Points, Words: r.Words, TXT: r.TXT, Page: r.Page, Why: r.Why}
}

// ownStatus is what status says of it: listings are warnings.
func (d *daemon) ownStatus(s *control.Status, warnings map[string]string) {
	w := d.watch
	if w == nil {
		return
	}
	st := &control.OwnCount{Lists: map[string]int{}}
	more := 0
	for _, o := range w.Own() {
		st.Watched++
		if slices.ContainsFunc(o.Lists, func(l reputation.Standing) bool { return l.Says == dnslist.Listed }) {
			st.Listed++
		}
		for _, l := range o.Lists {
			if st.Lists[l.List] += 0; l.Says != dnslist.Listed {
				continue
			}
			st.Lists[l.List]++
			if more++; more <= maxOwnWarn {
				warnings["own "+o.Address.String()+" "+l.List] = fmt.Sprintf("the own address %s is listed by %s%s since %s at the latest", o.Address, l.List, inBrackets(l.Answer.Words), dayTime(l.Since))
			}
		}
	}
	if more > maxOwnWarn {
		warnings["own more"] = fmt.Sprintf("own addresses have %d listings: mxshieldctl reputation", more)
	}
	s.Own = st
}
