package config

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/agent/internal/dnslist"
	"github.com/mxshield/mxshield/agent/internal/reputation"
	"github.com/mxshield/mxshield/agent/internal/zone"
)

// DNS says whom the agent asks, and what.
type DNS struct {
	Resolvers []netip.AddrPort // none: those of /etc/resolv.conf
	Lists     []dnslist.List   // without their keys, see dnslist.List.LoadKey
	Publish   *Publish         // nil: the table is not served
	Own       []netip.Prefix   // own addresses that are looked up
	OwnHook   string           // a program that is told what happens to them

	BeforeAccept bool    // hold the first SYN of a new source while the lists are asked
	BeforeFrom   float64 // points; 0: block.threshold, see BeforePoints
}

// Publish is where the block table is served as a DNS list.
type Publish struct {
	Listen  netip.AddrPort
	Zone    string
	Clients []netip.Prefix // beside this host
}

// dnsFile is the dns key as it stands.
type dnsFile struct {
	Resolvers []string `yaml:"resolvers"`
	Lists     []any    `yaml:"lists"`
	Publish   *struct {
		Listen  string   `yaml:"listen"`
		Zone    string   `yaml:"zone"`
		Clients []string `yaml:"clients"`
	} `yaml:"publish"`
	Own     []string `yaml:"own"`
	OwnHook string   `yaml:"own_hook"`

	BeforeAccept any `yaml:"before_accept"`
}

// Bounds of the dns key.
const (
	maxResolvers = 8
	maxLists     = 32
	maxCodes     = 256
)

func (c *checker) dns(f *dnsFile) {
	if f == nil {
		return
	}
	d := &c.cfg.DNS
	if len(f.Resolvers) > maxResolvers {
		c.fault("$.dns.resolvers", "two or three are enough", "%d resolvers are too many: at most %d", len(f.Resolvers), maxResolvers)
		return
	}
	for i, s := range f.Resolvers {
		at := fmt.Sprintf("$.dns.resolvers[%d]", i)
		r, err := netip.ParseAddrPort(s)
		if a, aerr := netip.ParseAddr(s); aerr == nil {
			r, err = netip.AddrPortFrom(a, 53), nil
		}
		switch {
		case err != nil || r.Port() == 0 || r.Addr().IsUnspecified() || r.Addr().IsMulticast():
			c.fault(at, "an address such as 127.0.0.1 or [::1]:5353", "%.80q is no address of a server", s)
		case slices.Contains(d.Resolvers, r):
			c.fault(at, "take one out", "%s stands there twice", r)
		default:
			d.Resolvers = append(d.Resolvers, r)
		}
	}
	if len(f.Lists) > maxLists {
		c.fault("$.dns.lists", "a handful of good ones does", "%d lists are too many: at most %d", len(f.Lists), maxLists)
		return
	}
	for i, item := range f.Lists {
		at := fmt.Sprintf("$.dns.lists[%d]", i)
		var l dnslist.List
		ok := false
		switch v := item.(type) {
		case string:
			l, ok = c.site(at, v)
		case map[string]any:
			l, ok = c.list(at, v)
		default:
			c.fault(at, listHint, "is neither a text nor a mapping")
		}
		if !ok {
			continue
		}
		if other := slices.IndexFunc(d.Lists, func(o dnslist.List) bool { return o.Zone == l.Zone }); other >= 0 {
			c.fault(at, "put all its codes into one item", "%s stands there twice", l.Name)
			continue
		}
		d.Lists = append(d.Lists, l)
	}
	for _, l := range d.Lists {
		if l.Zone == "zen.spamhaus.org" || l.Zone == "zen.dq.spamhaus.net" {
			for i, o := range d.Lists {
				part, _, _ := strings.Cut(o.Zone, ".")
				if o.Zone != l.Zone && strings.Contains(o.Zone, "spamhaus.") && slices.Contains([]string{"zen", "sbl", "xbl", "pbl", "css", "sbl-xbl"}, part) {
					c.fault(fmt.Sprintf("$.dns.lists[%d]", i), "take it out", "%s is part of %s: a source would count twice", o.Name, l.Name)
				}
			}
			break
		}
	}
	c.before(f.BeforeAccept)
	c.publish(f)
	c.own(f)
}

// own checks dns.own.
func (c *checker) own(f *dnsFile) {
	d := &c.cfg.DNS
	for i, s := range f.Own {
		at := fmt.Sprintf("$.dns.own[%d]", i)
		p, err := block.ParsePrefix(s)
		switch a := p.Addr(); {
		case err != nil:
			c.fault(at, "an address or CIDR of your own such as 198.51.100.25", "%v", err)
		case !a.IsGlobalUnicast() || a.IsPrivate() && !c.cfg.Block.Private:
			c.fault(at, "an address from which mail goes out to the internet", "%s is on no list: it is not an address of the internet", p)
		case slices.ContainsFunc(d.Own, p.Overlaps):
			c.fault(at, "take one out", "%s stands there twice", p)
		default:
			d.Own = append(d.Own, p)
		}
	}
	if _, err := reputation.Addresses(d.Own); err != nil {
		c.fault("$.dns.own", "name the addresses that send mail", "%v", err)
	}
	if len(f.Own) > 0 && len(f.Lists) == 0 {
		c.fault("$.dns.own", "name the lists under dns.lists", "there are no lists to look them up on")
	}
	if h := f.OwnHook; h != "" {
		switch {
		case !filepath.IsAbs(h):
			c.fault("$.dns.own_hook", "give the whole path of a program; it gets its arguments from the agent", "%.100q is no path", h)
		case len(f.Own) == 0:
			c.fault("$.dns.own_hook", "name the addresses under dns.own", "there are no own addresses to tell it of")
		}
		d.OwnHook = h
	}
}

// maxClients bounds whom the zone is served to, in prefixes: each question is compared with them.
const maxClients = 256

// publish checks dns.publish. Whoever may ask learns whom we block, so beyond loopback the clients must be named.
func (c *checker) publish(f *dnsFile) {
	if f.Publish == nil {
		return
	}
	const at = "$.dns.publish"
	p := &Publish{Listen: netip.MustParseAddrPort("127.0.0.1:5353"), Zone: strings.ToLower(strings.TrimSuffix(f.Publish.Zone, "."))}
	if s := f.Publish.Listen; s != "" {
		if l := c.listen(at+".listen", s, "127.0.0.1:5353"); l.IsValid() {
			p.Listen = l
		}
	}
	if err := zone.CheckName(p.Zone); err != nil {
		c.fault(at, "zone: bl.example.org, a name below a domain of yours", "zone: %v", err)
	}
	if len(f.Publish.Clients) > maxClients {
		c.fault(at+".clients", "name networks instead of addresses", "%d are too many: at most %d", len(f.Publish.Clients), maxClients)
		return
	}
	for i, s := range f.Publish.Clients {
		n, err := block.ParsePrefix(s)
		if err != nil {
			c.fault(fmt.Sprintf("%s.clients[%d]", at, i), "an address or CIDR such as 192.0.2.0/24", "%v", err)
			continue
		}
		min := 8
		if n.Addr().Is6() {
			min = 32
		}
		if n.Bits() < min {
			c.fault(fmt.Sprintf("%s.clients[%d]", at, i), "name the networks of your own hosts: whoever asks learns whom you block", "%s is wider than /%d", n, min)
			continue
		}
		p.Clients = append(p.Clients, n)
	}
	if !p.Listen.Addr().IsLoopback() && len(p.Clients) == 0 {
		c.fault(at, "clients: [192.0.2.0/24], the networks that may ask; or listen on 127.0.0.1", "%s is no loopback address, and nobody is named who may ask there", p.Listen)
	}
	for i, l := range c.cfg.DNS.Lists {
		if l.Zone == p.Zone {
			c.fault(fmt.Sprintf("$.dns.lists[%d]", i), "take it out: a block would confirm itself", "%s is the zone that dns.publish serves", l.Name)
		}
	}
	c.cfg.DNS.Publish = p
}

const listHint = `for example {zone: zen.spamhaus.org}, {zone: bl.example.net, codes: {"127.0.0.2": 60}} or "bl.example.net=127.0.0.[2..11]*2"`

// site reads an item in postscreen's form, or the zone of a preset alone.
func (c *checker) site(at, s string) (dnslist.List, bool) {
	l, err := dnslist.ParseSite(s)
	switch {
	case err != nil:
		c.fault(at, listHint, "%v", err)
		return l, false
	case l.NeedsKey():
		c.fault(at, "{zone: "+l.Zone+", key_file: /etc/mxshield/dqs.key}", "%s needs a key_file", l.Name)
		return l, false
	}
	return l, true
}

func (c *checker) list(at string, m map[string]any) (l dnslist.List, ok bool) {
	before := len(c.errs)
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if !slices.Contains([]string{"zone", "codes", "key_file", "rate", "daily"}, k) {
			c.fault(at, "keys of a list: zone, codes, key_file, rate, daily", "%.40q is unknown", k)
		}
	}
	zone, _ := m["zone"].(string)
	if zone == "" {
		c.fault(at, listHint, "needs a zone")
		return l, false
	}
	l, err := dnslist.NewList(zone)
	if err != nil {
		c.fault(at+".zone", listHint, "%v", err)
		return l, false
	}
	if v, has := m["codes"]; has {
		l.Codes = c.codes(at, v)
	} else if len(l.Codes) == 0 {
		c.fault(at, "say what its answers count, as in codes: {\"127.0.0.2\": 60}; presets: "+strings.Join(dnslist.Presets(), ", "), "%s is no preset and has no codes", l.Name)
	}
	if v, has := m["key_file"]; has {
		path, isText := v.(string)
		if !isText || !filepath.IsAbs(path) {
			c.fault(at+".key_file", "give the whole path", "is no path")
		}
		l.KeyFile = path
	}
	if l.NeedsKey() && l.KeyFile == "" {
		c.fault(at, "key_file: /etc/mxshield/dqs.key", "%s needs a key_file", l.Name)
	}
	limit := func(key string, most float64) float64 {
		v, has := m[key]
		if !has {
			return 0
		}
		n, isNumber := number(v)
		if !isNumber || !(n >= 1) || n > most {
			c.fault(at+"."+key, fmt.Sprintf("a number from 1 to %g", most), "%.20v is out of range", v)
			return 0
		}
		return n
	}
	if n := limit("rate", 10_000); n > 0 {
		l.Rate = n
	}
	if n := limit("daily", 1e9); n > 0 {
		l.Daily = int(n)
	}
	return l, len(c.errs) == before
}

func (c *checker) codes(at string, v any) (list []dnslist.Code) {
	at += ".codes"
	m, ok := v.(map[string]any)
	if !ok || len(m) == 0 || len(m) > maxCodes {
		c.fault(at, `{"127.0.0.2": 60, "127.0.0.[4..7]": 30}`, "must be a mapping of 1 to %d patterns to points", maxCodes)
		return nil
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		p, err := dnslist.ParsePattern(k)
		if err != nil {
			c.fault(at, "four parts such as 127.0.0.2 or 127.0.0.[4..7]", "%v", err)
			continue
		}
		n, isNumber := number(m[k])
		if !isNumber || math.IsNaN(n) || math.Abs(n) > dnslist.MaxPoints {
			c.fault(at, fmt.Sprintf("points from -%d (welcome) to %d; block.threshold is what blocks", dnslist.MaxPoints, dnslist.MaxPoints), "%q: %.20v is out of range", k, m[k])
			continue
		}
		list = append(list, dnslist.Code{Pattern: p, Points: n})
	}
	return list
}

func number(v any) (float64, bool) {
	switch n := v.(type) {
	case int:
		return float64(n), true
	case int64:
		return float64(n), true
	case uint64:
		return float64(n), true
	case float64:
		return n, true
	}
	return 0, false
}
