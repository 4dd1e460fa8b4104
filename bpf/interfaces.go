package bpf

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// DefaultInterfaces returns the names of all interfaces that carry a default route, IPv4 or IPv6, in the main table of
// the calling thread's network namespace.
func DefaultInterfaces() ([]string, error) {
	var names []string
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst != nil {
				if ones, _ := r.Dst.Mask.Size(); ones != 0 {
					continue
				}
			}
			if r.Type != unix.RTN_UNICAST { // unreachable, blackhole
				continue
			}
			indexes := []int{r.LinkIndex}
			for _, hop := range r.MultiPath {
				indexes = append(indexes, hop.LinkIndex)
			}
			for _, index := range indexes {
				if index == 0 {
					continue
				}
				link, err := netlink.LinkByIndex(index)
				if err != nil {
					continue // gone since
				}
				if name := link.Attrs().Name; !slices.Contains(names, name) {
					names = append(names, name)
				}
			}
		}
	}
	if names == nil {
		return nil, hint(errors.New("find interfaces: there is no default route"),
			"name them in the config: interfaces: ["+strings.Join(interfaceNames(), ", ")+"]")
	}
	slices.Sort(names)
	return names, nil
}

// ResolveInterfaces turns names, globs and "auto" (see [DefaultInterfaces]) into the names of interfaces that exist,
// sorted, each once. A name or "auto" that stands for nothing is an error, beside the names that do: the others can be
// shielded. A glob is, if nothing at all was found: its interfaces may come and go. It does not match loopback
// interfaces, nor ports of a bond that is in the list.
func ResolveInterfaces(specs []string) ([]string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	names, _, err := resolve(specs, links)
	return names, err
}

// resolve also tells which names only "auto" stands for.
func resolve(specs []string, links []netlink.Link) (names []string, auto map[string]bool, err error) {
	var errs []error
	var unmatched []string // globs
	auto = map[string]bool{}
	named := map[string]bool{}
	globbed := map[string]bool{}
	for _, spec := range specs {
		if spec == "auto" {
			found, err := DefaultInterfaces()
			for _, name := range found {
				auto[name] = true
			}
			errs = append(errs, err)
			continue
		}
		isGlob := strings.ContainsAny(spec, "*?[")
		found := false
		for _, link := range links {
			name := link.Attrs().Name
			if name == spec {
				named[name], found = true, true
				continue
			}
			ok, err := path.Match(spec, name)
			if err != nil {
				return nil, nil, fmt.Errorf("find interface %q: bad pattern", spec)
			}
			if ok && isGlob && link.Attrs().RawFlags&unix.IFF_LOOPBACK == 0 {
				globbed[name], found = true, true
			}
		}
		switch {
		case found:
		case isGlob:
			unmatched = append(unmatched, spec)
		default:
			errs = append(errs, noInterface(spec))
		}
	}
	for _, link := range links {
		name := link.Attrs().Name
		if bond := bondOf(links, link); bond != nil && !named[name] && !auto[name] {
			if b := bond.Attrs().Name; named[b] || auto[b] || globbed[b] {
				delete(globbed, name)
			}
		}
	}
	for _, set := range []map[string]bool{named, globbed, auto} {
		names = slices.AppendSeq(names, maps.Keys(set))
	}
	for name := range auto {
		if named[name] || globbed[name] {
			delete(auto, name)
		}
	}
	if len(names) == 0 {
		for _, spec := range unmatched {
			errs = append(errs, noInterface(spec))
		}
	}
	slices.Sort(names)
	return slices.Compact(names), auto, errors.Join(errs...)
}

func noInterface(name string) error {
	return hint(fmt.Errorf("find interface %s: there is none", name),
		"interfaces here: "+strings.Join(interfaceNames(), ", "))
}

func interfaceNames() (names []string) {
	links, _ := netlink.LinkList()
	for _, link := range links {
		names = append(names, link.Attrs().Name)
	}
	return names
}
