// Package config reads the agent's YAML file. Every key is optional and an empty file is a good one; what is not
// understood is an error with its line and a hint, never ignored, and all errors of a file are reported at once.
//
//	interfaces: [auto]            # names, globs; auto = those that carry a default route
//	attach: auto                  # auto | native | generic | tcx
//	ports: {mx: [25], submission: [465, 587]}
//	exempt: [192.0.2.26]          # local addresses that are not shielded, at most 16 of each family
//	logs:                         # default: found by itself
//	  - {file: /var/log/mail.log, mta: auto}  # or postfix exim sendmail opensmtpd dovecot courier
//	  - {file: /var/log/exim4/*log}           # all files that match, those to come too
//	  - {journal: "postfix@-.service"}
//	  - {syslog: "unixgram:/run/mxshield/log", users: [syslog], group: mxshield}  # or udp:127.0.0.1:5514
//	  - {stdin: true}
//	block: {for: 72h, max: 168h, threshold: 100, half_life: 1h, ipv6_prefix: 64, private: false}
//	weights: {unknown_recipient: 10}
//	traps: [honeypot@example.org, "@old.example.org"]
//	allow: [192.0.2.0/24, "spf:example.org", "domain:example.org"]
//	big_senders: true             # allow the shipped list of providers too
//	own_domains: [example.org]    # whose MXs are never blocked automatically, beside those that Postfix tells
//	dns:
//	  resolvers: [127.0.0.1]      # default: /etc/resolv.conf
//	  lists: [{zone: zen.spamhaus.org}, {zone: bl.example.net, codes: {"127.0.0.2": 60}}, "bl.example.org=127.0.0.[2..11]*2"]
//	  publish: {listen: "127.0.0.1:5353", zone: bl.example.org, clients: [192.0.2.0/24]}
//	  own: [198.51.100.25]        # own addresses that are looked up on the lists, at most 256
//	  own_hook: /usr/local/bin/notify
//	  before_accept: false        # true, or points: hold the first SYN of a new source while the lists are asked
//	metrics: "127.0.0.1:9725"     # a Prometheus endpoint; default: none
//	limits: {syn_per_source: 0, syn_total: 0}  # new connections a second; 0 = no limit
//	state: /var/lib/mxshield/state.db
//	socket: /run/mxshield/control.sock
//	pins: /sys/fs/bpf/mxshield
//	dry_run: false
//	cluster: {name: mx1, bind: "0.0.0.0:7946", advertise: "", peers: [mx2.example.org], key_file: /etc/mxshield/cluster.key, label: mx}
package config

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/maillog"
	"github.com/mxshield/mxshield/agent/internal/senders"
	"github.com/mxshield/mxshield/agent/internal/verdict"
	"github.com/mxshield/mxshield/agent/internal/zone"
)

// DefaultPath is where the agent looks for its file.
const DefaultPath = "/etc/mxshield/mxshield.yaml"

// maxSize bounds the file, in bytes.
const maxSize = 1 << 20

// Config is a file with its defaults filled in and checked.
type Config struct {
	Interfaces      []string
	Attach          string
	MXPorts         []uint16
	SubmissionPorts []uint16
	Exempt          []netip.Prefix
	Logs            []Log
	Block           Block
	Weights         [maillog.NumKinds]float64
	Traps           *maillog.Traps // nil: none
	Allow           []Allow
	Senders         []senders.Sender // allows by name; the file's first, then the shipped ones
	State           string
	Socket          string
	Pins            string
	DryRun          bool
	Cluster         *Cluster // nil: this node is alone
	DNS             DNS
	OwnDomains      []string // beside those that Postfix tells
	Limits          Limits
	Metrics         netip.AddrPort // of the Prometheus endpoint; not valid: none
}

// Log is one input. One of File, Journal, Syslog and Stdin is set; without any Log the agent looks for one itself.
type Log struct {
	File    string // absolute path, or a pattern of path/filepath.Match
	Journal string
	Syslog  string // address in Network: a path, or a loopback address and port
	Network string // unixgram or udp
	Users   []string
	Group   string
	Stdin   bool
	MTA     maillog.MTA // Auto: told apart line by line
}

// Block says how sources come to be blocked.
type Block struct {
	For, Max, HalfLife time.Duration
	Threshold          float64
	IPv6Prefix         int
	Private            bool // private ranges may be blocked
}

// Limits are new connections (SYNs) a second to the protected ports; 0 is no limit.
type Limits struct {
	SYNPerSource int // from one IPv4 address or IPv6 /64
	SYNTotal     int // from all sources together
}

// Allow is one line of the allow list.
type Allow struct {
	Prefix netip.Prefix
	Line   int
}

// An Error is one fault of the file.
type Error struct {
	File string
	Line int // 0: not known
	Text string
	Hint string
}

func (e *Error) Error() string {
	if e.Line > 0 {
		return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Text)
	}
	return fmt.Sprintf("%s: %s", e.File, e.Text)
}

// HintText tells how to mend the fault.
func (e *Error) HintText() string { return e.Hint }

// file is the YAML as it stands. Durations and addresses are strings here, so that their faults get a line.
type file struct {
	Interfaces []string `yaml:"interfaces"`
	Attach     string   `yaml:"attach"`
	Ports      *struct {
		MX         []int `yaml:"mx"`
		Submission []int `yaml:"submission"`
	} `yaml:"ports"`
	Exempt []string `yaml:"exempt"`
	Logs   []struct {
		File    string   `yaml:"file"`
		Journal string   `yaml:"journal"`
		Syslog  string   `yaml:"syslog"`
		Users   []string `yaml:"users"`
		Group   string   `yaml:"group"`
		Stdin   bool     `yaml:"stdin"`
		MTA     string   `yaml:"mta"`
	} `yaml:"logs"`
	Block struct {
		For        string   `yaml:"for"`
		Max        string   `yaml:"max"`
		Threshold  *float64 `yaml:"threshold"`
		HalfLife   string   `yaml:"half_life"`
		IPv6Prefix *int     `yaml:"ipv6_prefix"`
		Private    bool     `yaml:"private"`
	} `yaml:"block"`
	Weights map[string]float64 `yaml:"weights"`
	Traps   []string           `yaml:"traps"`
	Allow   []string           `yaml:"allow"`
	Big     *bool              `yaml:"big_senders"`
	State   string             `yaml:"state"`
	Socket  string             `yaml:"socket"`
	Pins    string             `yaml:"pins"`
	DNS     *dnsFile           `yaml:"dns"`
	Domains []string           `yaml:"own_domains"`
	Cluster *clusterFile       `yaml:"cluster"`
	DryRun  bool               `yaml:"dry_run"`
	Limits  struct {
		SYNPerSource int `yaml:"syn_per_source"`
		SYNTotal     int `yaml:"syn_total"`
	} `yaml:"limits"`
	Metrics string `yaml:"metrics"`
}

// confirmedReject is what an MTA's refusal because of a list counts, once the agent's own query has confirmed it. Others count
// nothing: an MTA logs the errors of lists as listings.
const confirmedReject = 20

// Default returns the configuration of an empty file.
func Default() *Config {
	v := verdict.DefaultConfig()
	v.Weights[maillog.DNSBLReject] = confirmedReject
	return &Config{
		Interfaces: []string{"auto"}, Attach: "auto",
		MXPorts: []uint16{25}, SubmissionPorts: []uint16{465, 587},
		Block:   Block{For: v.For, Max: v.Max, HalfLife: v.HalfLife, Threshold: v.Threshold, IPv6Prefix: v.IPv6Prefix},
		Weights: v.Weights,
		Senders: withPreset(nil),
		State:   "/var/lib/mxshield/state.db", Socket: "/run/mxshield/control.sock", Pins: "/sys/fs/bpf/mxshield",
	}
}

// Read reads the file. A missing file at DefaultPath is an empty one; a missing file that was named is an error.
// All faults come joined, each an *Error.
func Read(path string, named bool) (*Config, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) && !named {
		return Default(), nil
	}
	if err != nil {
		return nil, &Error{File: path, Text: strings.TrimPrefix(err.Error(), "open "+path+": "), Hint: "name the file with --config, or leave it out: every setting has a default"}
	}
	defer f.Close()
	src, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, &Error{File: path, Text: err.Error()}
	}
	if len(src) > maxSize {
		return nil, &Error{File: path, Text: fmt.Sprintf("larger than %d bytes", maxSize), Hint: "long allow lists belong into `mxshieldctl allow add`"}
	}
	return Parse(path, src)
}

// Parse checks the text of a file; name is used in errors.
func Parse(name string, src []byte) (*Config, error) {
	tree, err := parser.ParseBytes(src, 0)
	if err != nil {
		return nil, yamlError(name, err)
	}
	var f file
	if err := yaml.UnmarshalWithOptions(src, &f, yaml.Strict()); err != nil && !errors.Is(err, io.EOF) {
		return nil, yamlError(name, err)
	}
	c := &checker{name: name, tree: tree, cfg: Default()}
	c.check(&f)
	if len(c.errs) > 0 {
		sort.SliceStable(c.errs, func(i, j int) bool { return c.errs[i].Line < c.errs[j].Line })
		all := make([]error, len(c.errs))
		for i, e := range c.errs {
			all[i] = e
		}
		return nil, errors.Join(all...)
	}
	return c.cfg, nil
}

const keysHint = "README.md lists the keys with examples; those of dns, block and the like stand indented under them"

func yamlError(name string, err error) error {
	e := &Error{File: name, Hint: "mxshield-agent --help names the page with all keys; YAML wants spaces, not tabs, for indentation"}
	var y yaml.Error
	if errors.As(err, &y) {
		if t := y.GetToken(); t != nil && t.Position != nil {
			e.Line = t.Position.Line
		}
		e.Text = y.GetMessage()
		var wrong *yaml.TypeError
		var node *yaml.UnexpectedNodeTypeError
		var unknown *yaml.UnknownFieldError
		switch {
		case errors.As(err, &wrong):
			e.Hint = keysHint
			e.Text = keyBefore(y) + fmt.Sprintf("there is %s where %s is expected", valueWord(wrong.SrcType), valueWord(wrong.DstType))
		case errors.As(err, &node):
			e.Hint = keysHint
			e.Text = keyBefore(y) + strings.NewReplacer("sequence", "list", "string", "text").Replace(e.Text)
		case errors.As(err, &unknown) && unknown.Token != nil:
			e.Text = fmt.Sprintf("%.40q is no key", unknown.Token.Value)
			e.Hint = keysHint
		}
		return e
	}
	e.Text = err.Error()
	return e
}

// keyBefore names the key whose value is wrong, if it stands on the same line.
func keyBefore(err yaml.Error) string {
	if t := err.GetToken(); t != nil && t.Prev != nil && t.Prev.Prev != nil && t.Prev.Value == ":" {
		return fmt.Sprintf("%.40s: ", t.Prev.Prev.Value)
	}
	return ""
}

// valueWord says what people call a value of a type.
func valueWord(t reflect.Type) string {
	if t == nil {
		return "nothing"
	}
	switch t.Kind() {
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Map, reflect.Struct, reflect.Pointer:
		return "a mapping (key: value)"
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a text"
	}
	return "a number"
}

type checker struct {
	name string
	tree *ast.File
	cfg  *Config
	errs []*Error
}

// line finds the line of a key such as "$.block.for".
func (c *checker) line(path string) int {
	p, err := yaml.PathString(path)
	if err != nil {
		return 0
	}
	n, err := p.FilterFile(c.tree)
	if err != nil || n == nil || n.GetToken() == nil || n.GetToken().Position == nil {
		return 0
	}
	return n.GetToken().Position.Line
}

func (c *checker) fault(path, hint, format string, args ...any) {
	c.errs = append(c.errs, &Error{File: c.name, Line: c.line(path), Text: strings.TrimPrefix(path, "$.") + ": " + fmt.Sprintf(format, args...), Hint: hint})
}

func (c *checker) check(f *file) {
	cfg := c.cfg
	if f.Interfaces != nil {
		if len(f.Interfaces) == 0 {
			c.fault("$.interfaces", "leave the key out for the interfaces of the default route", "an empty list protects nothing")
		}
		for i, n := range f.Interfaces {
			if _, err := filepath.Match(n, "eth0"); err != nil || n == "" || len(n) > 64 || strings.ContainsAny(n, "/ \t") {
				c.fault(fmt.Sprintf("$.interfaces[%d]", i), "for example eth0, or ens* for a glob", "%q is no interface name", n)
			}
		}
		cfg.Interfaces = f.Interfaces
	}
	if f.Attach != "" {
		if !slices.Contains([]string{"auto", "native", "generic", "tcx"}, f.Attach) {
			c.fault("$.attach", "one of auto, native, generic, tcx", "%q is unknown", f.Attach)
		}
		cfg.Attach = f.Attach
	}
	if f.Ports != nil {
		if f.Ports.MX != nil {
			cfg.MXPorts = c.ports("$.ports.mx", f.Ports.MX)
		}
		if f.Ports.Submission != nil {
			cfg.SubmissionPorts = c.ports("$.ports.submission", f.Ports.Submission)
		}
		for _, p := range cfg.SubmissionPorts {
			if slices.Contains(cfg.MXPorts, p) {
				c.fault("$.ports.submission", "a port is in one group: blocks from DNS lists close the mx group only", "port %d is in mx too", p)
			}
		}
		switch n := len(cfg.MXPorts) + len(cfg.SubmissionPorts); {
		case n == 0:
			c.fault("$.ports", "leave the key out for 25, 465 and 587", "no port is protected")
		case n > 16:
			c.fault("$.ports", "the kernel program compares at most 16", "%d ports are too many", n)
		}
	}
	c.exempt(f.Exempt)
	c.logs(f)
	c.block(f)
	c.dns(f.DNS)
	for name, w := range f.Weights {
		k, ok := maillog.ParseKind(name)
		switch at := "$.weights." + name; {
		case !ok || k == maillog.None:
			c.fault("$.weights", "kinds: "+strings.Join(weightNames(), ", "), "%q is no kind of event", name)
		case !weighable(k):
			c.fault(at, "it is no offence", "%s has no weight", name)
		case math.IsNaN(w) || w < 0 || w > 10000:
			c.fault(at, "0 to 10000; 0 ignores the kind", "%v is out of range", w)
		default:
			cfg.Weights[k] = w
		}
	}
	for i, s := range f.Traps {
		if cfg.Traps == nil {
			cfg.Traps = new(maillog.Traps)
		}
		if err := cfg.Traps.Add(s); err != nil {
			c.fault(fmt.Sprintf("$.traps[%d]", i), "a recipient such as honeypot@example.org or honeypot-*@example.org, or a whole domain such as \"@old.example.org\"", "%v", err)
		}
	}
	cfg.Senders = nil
	for i, a := range f.Allow {
		at := fmt.Sprintf("$.allow[%d]", i)
		if strings.HasPrefix(a, "spf:") || strings.HasPrefix(a, "domain:") {
			snd, err := senders.Parse(a)
			switch {
			case err != nil:
				c.fault(at, "for example spf:example.org (the ranges of its SPF record) or domain:example.org (hosts whose names lie under it)", "%v", err)
			case slices.Contains(cfg.Senders, snd):
				c.fault(at, "take one out", "%s stands there twice", snd.Rule)
			case len(cfg.Senders) >= maxSenders:
				c.fault(at, "list ranges instead of names", "more than %d names", maxSenders)
			default:
				cfg.Senders = append(cfg.Senders, snd)
			}
			continue
		}
		p, err := block.ParsePrefix(a)
		if err != nil {
			c.fault(at, "an address or CIDR such as 192.0.2.0/24, spf:NAME or domain:NAME", "%v", err)
			continue
		}
		if min := minAllow(p); p.Bits() < min {
			c.fault(at, "allow the networks you mean, one by one", "%s is wider than /%d", p, min)
			continue
		}
		cfg.Allow = append(cfg.Allow, Allow{p, c.line(at)})
	}
	if f.Big == nil || *f.Big {
		cfg.Senders = withPreset(cfg.Senders)
	}
	c.ownDomains(f.Domains)
	for _, s := range []struct {
		key, val string
		to       *string
	}{{"state", f.State, &cfg.State}, {"socket", f.Socket, &cfg.Socket}, {"pins", f.Pins, &cfg.Pins}} {
		if s.val == "" {
			continue
		}
		if !filepath.IsAbs(s.val) {
			c.fault("$."+s.key, "give the whole path", "%q is not absolute", s.val)
		}
		*s.to = filepath.Clean(s.val)
	}
	if len(cfg.Socket) > 107 {
		c.fault("$.socket", "unix(7) allows 107 bytes", "the path has %d bytes", len(cfg.Socket))
	}
	cfg.DryRun = f.DryRun
	c.limits(f)
	if f.Metrics != "" {
		cfg.Metrics = c.listen("$.metrics", f.Metrics, "127.0.0.1:9725")
	}
	c.cluster(f.Cluster)
}

// listen reads where to listen.
func (c *checker) listen(at, s, example string) netip.AddrPort {
	l, err := netip.ParseAddrPort(s)
	if err != nil || l.Port() == 0 || l.Addr().Zone() != "" || l.Addr().IsMulticast() {
		c.fault(at, "an address and a port such as "+example, "%.80q is no place to listen on", s)
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(l.Addr().Unmap(), l.Port())
}

// maxOwnDomains bounds the domains whose MXs are asked for.
const maxOwnDomains = 1000

func (c *checker) ownDomains(list []string) {
	if len(list) > maxOwnDomains {
		c.fault("$.own_domains", "one for each set of MXs does", "%d are too many: at most %d", len(list), maxOwnDomains)
		return
	}
	for i, s := range list {
		at := fmt.Sprintf("$.own_domains[%d]", i)
		name := strings.ToLower(strings.TrimSuffix(s, "."))
		switch err := zone.CheckName(name); {
		case err != nil:
			c.fault(at, "a domain that this host takes mail for, such as example.org", "%v", err)
		case slices.Contains(c.cfg.OwnDomains, name):
			c.fault(at, "take one out", "%s stands there twice", name)
		default:
			c.cfg.OwnDomains = append(c.cfg.OwnDomains, name)
		}
	}
}

// maxSenders bounds the allows by name: each is asked for every day, or compared with every name.
const maxSenders = 100

// withPreset adds the shipped senders that are not in the list yet.
func withPreset(list []senders.Sender) []senders.Sender {
	for _, p := range senders.Preset() {
		if !slices.ContainsFunc(list, func(s senders.Sender) bool { return s.Rule == p.Rule }) {
			list = append(list, p)
		}
	}
	return list
}

func minAllow(p netip.Prefix) int {
	if p.Addr().Is4() {
		return block.MinBits4
	}
	return block.MinBits6
}

func (c *checker) ports(path string, list []int) (out []uint16) {
	out = []uint16{}
	for i, p := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		switch {
		case p < 1 || p > 65535:
			c.fault(at, "1 to 65535", "%d is no port", p)
		case slices.Contains(out, uint16(p)):
			c.fault(at, "take one out", "port %d stands there twice", p)
		default:
			out = append(out, uint16(p))
		}
	}
	return out
}

// maxExempt is how many prefixes of each family the kernel program compares.
const maxExempt = 16

func (c *checker) exempt(list []string) {
	var families [2]int // IPv4, IPv6
	for i, a := range list {
		at := fmt.Sprintf("$.exempt[%d]", i)
		p, err := block.ParsePrefix(a)
		switch {
		case err != nil:
			c.fault(at, "a local address or CIDR such as 192.0.2.26", "%v", err)
			continue
		case p.Bits() == 0:
			c.fault(at, "`mxshieldctl off` switches the shield off", "%s is every address", p)
			continue
		case slices.Contains(c.cfg.Exempt, p):
			c.fault(at, "take one out", "%s stands there twice", p)
			continue
		}
		c.cfg.Exempt = append(c.cfg.Exempt, p)
		families[p.Addr().BitLen()/128]++
	}
	for i, name := range []string{"IPv4", "IPv6"} {
		if families[i] > maxExempt {
			c.fault("$.exempt", "name a CIDR instead of its addresses", "%d %s prefixes are too many: at most %d", families[i], name, maxExempt)
		}
	}
}

func (c *checker) block(f *file) {
	b := &c.cfg.Block
	dur := func(key, val string, to *time.Duration, min, max time.Duration) {
		if val == "" {
			return
		}
		d, err := block.ParseDuration(val)
		switch {
		case err != nil:
			c.fault("$.block."+key, "for example 90m, 72h or 3d", "%v", err)
		case d < min || d > max:
			c.fault("$.block."+key, fmt.Sprintf("%s to %s", min, max), "%s is out of range", val)
		default:
			*to = d
		}
	}
	dur("for", f.Block.For, &b.For, time.Minute, block.MaxAutomatic)
	dur("max", f.Block.Max, &b.Max, time.Minute, block.MaxAutomatic)
	dur("half_life", f.Block.HalfLife, &b.HalfLife, time.Minute, 7*24*time.Hour)
	if b.Max < b.For {
		if f.Block.Max != "" {
			c.fault("$.block.max", "max is where the doubling for repeat offenders stops", "%s is less than for, %s", b.Max, b.For)
		} else {
			b.Max = b.For
		}
	}
	if t := f.Block.Threshold; t != nil {
		if math.IsNaN(*t) || *t < 1 || *t > 1e6 {
			c.fault("$.block.threshold", "1 to 1000000; the default is 100", "%v is out of range", *t)
		}
		b.Threshold = *t
	}
	if n := f.Block.IPv6Prefix; n != nil {
		if *n != 64 && *n != 56 && *n != 48 {
			c.fault("$.block.ipv6_prefix", "64, 56 or 48", "%d is out of range", *n)
		}
		b.IPv6Prefix = *n
	}
	b.Private = f.Block.Private
}

// weighable says whether a kind of event can count against a source at all.
func weighable(k maillog.Kind) bool {
	switch k {
	case maillog.None, maillog.Connect, maillog.Disconnect, maillog.Delivered, maillog.AuthSuccess, maillog.Recipient, maillog.DNSListed:
		return false
	}
	return true
}

func weightNames() (list []string) {
	for k := maillog.None; k < maillog.NumKinds; k++ {
		if weighable(k) {
			list = append(list, k.String())
		}
	}
	return list
}
