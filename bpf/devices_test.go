package bpf

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// device makes a link as the kernel lists it: nothing here needs the drivers.
func device(kind, name string, index, parent, master int) netlink.Link {
	a := netlink.NewLinkAttrs()
	a.Name, a.Index, a.ParentIndex, a.MasterIndex = name, index, parent, master
	switch kind {
	case "vlan":
		return &netlink.Vlan{LinkAttrs: a}
	case "bond":
		b := netlink.NewLinkBond(a)
		return b
	case "bridge":
		return &netlink.Bridge{LinkAttrs: a}
	case "veth":
		return &netlink.Veth{LinkAttrs: a}
	case "macvlan":
		return &netlink.Macvlan{LinkAttrs: a}
	case "team":
		return &netlink.GenericLink{LinkAttrs: a, LinkType: "team"}
	}
	return &netlink.Device{LinkAttrs: a}
}

func TestUnderVLAN(t *testing.T) {
	eth0 := device("", "eth0", 2, 0, 0)
	v100 := device("vlan", "eth0.100", 3, 2, 0)
	elsewhere := device("vlan", "eth9.1", 20, 2, 0)
	elsewhere.Attrs().NetNsID = 1
	for _, c := range []struct {
		what  string
		links []netlink.Link
		dev   netlink.Link
		want  string
	}{
		{"a VLAN", []netlink.Link{eth0, v100}, v100, "eth0"},
		{"no VLAN", []netlink.Link{eth0, v100}, eth0, ""},
		{"two VLANs", []netlink.Link{eth0, v100, device("vlan", "eth0.200", 4, 2, 0)}, v100, "eth0"},
		{"the other VLAN is a bridge's", []netlink.Link{eth0, v100, device("vlan", "eth0.200", 4, 2, 9), device("bridge", "br0", 9, 0, 0)}, v100, ""},
		{"this VLAN is a bridge's", []netlink.Link{eth0, device("vlan", "eth0.100", 3, 2, 9)}, device("vlan", "eth0.100", 3, 2, 9), ""},
		{"the wire is a bridge's", []netlink.Link{device("", "eth0", 2, 0, 9), v100}, v100, ""},
		{"a container on the wire", []netlink.Link{eth0, v100, device("macvlan", "mv0", 5, 2, 0)}, v100, ""},
		{"a veth whose peer has that index", []netlink.Link{eth0, v100, device("veth", "veth0", 5, 2, 0)}, v100, "eth0"},
		{"two tags", []netlink.Link{eth0, v100, device("vlan", "eth0.100.5", 6, 3, 0)}, device("vlan", "eth0.100.5", 6, 3, 0), "eth0"},
		{"three tags", []netlink.Link{eth0, v100, device("vlan", "q2", 6, 3, 0), device("vlan", "q3", 7, 6, 0)}, device("vlan", "q3", 7, 6, 0), ""},
		{"on a bond", []netlink.Link{device("bond", "bond0", 2, 0, 0), device("", "eth0", 8, 0, 2), v100}, v100, "bond0"},
		{"the wire is in another namespace", []netlink.Link{elsewhere}, elsewhere, ""},
	} {
		got := ""
		if l := underVLAN(c.links, c.dev); l != nil {
			got = l.Attrs().Name
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

func TestBondPorts(t *testing.T) {
	for _, kind := range []string{"bond", "team"} {
		links := []netlink.Link{
			device("", "eth0", 2, 0, 10), device("", "eth1", 3, 0, 10), device("", "eth2", 4, 0, 0), device(kind, "bond0", 10, 0, 0),
			device("", "eth3", 5, 0, 11), device("bridge", "br0", 11, 0, 0),
		}
		for specs, want := range map[string]string{
			"*":    "[bond0 br0 eth2 eth3]", // a bridge keeps no program off its ports
			"eth*": "[eth0 eth1 eth2 eth3]", "bond0": "[bond0]", "eth0 bond0": "[bond0 eth0]", "bond* eth[01]": "[bond0]",
			"eth2 wan*": "[eth2]",
		} {
			var list []string
			for s := range strings.FieldsSeq(specs) {
				list = append(list, s)
			}
			got, auto, err := resolve(list, links)
			if err != nil || fmt.Sprint(got) != want || len(auto) > 0 {
				t.Errorf("%s: %s: %v, %v, %v; want %s", kind, specs, got, auto, err, want)
			}
		}
		if _, _, err := resolve([]string{"wan*", "ppp?"}, links); err == nil {
			t.Error("globs that match nothing at all are no error")
		}
	}
}
