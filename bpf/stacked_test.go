package bpf

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cilium/ebpf/features"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// addDevice makes a device, and skips where the kernel has no driver for it.
func addDevice(t *testing.T, l netlink.Link) netlink.Link {
	t.Helper()
	err := netlink.LinkAdd(l)
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skipf("skipped: this kernel has no %s devices", l.Type())
	}
	must(t, err)
	dev := byName(t, l.Attrs().Name)
	must(t, netlink.LinkSetUp(dev))
	return dev
}

// moveAddr gives dev the mail host's address.
func (w *wire) moveAddr(t *testing.T, dev netlink.Link) {
	t.Helper()
	addr, err := netlink.ParseAddr("198.18.255.1/16")
	must(t, err)
	_ = netlink.AddrDel(w.dev, addr) // gone already with some moves
	must(t, netlink.AddrAdd(dev, addr))
}

// fallback is what auto takes without native XDP.
func fallback() Mode {
	if haveTCX() {
		return TCX
	}
	return Generic
}

// A VLAN device with the default route: natively on the wire under it, tags and all; on the device itself as soon as
// somebody else's packets come over that wire, or if it is named.
func TestVLAN(t *testing.T) {
	w := newWire(t)
	vlan := func(name string, id int) netlink.Link {
		a := netlink.NewLinkAttrs()
		a.Name, a.ParentIndex = name, w.dev.Attrs().Index
		return addDevice(t, &netlink.Vlan{LinkAttrs: a, VlanId: id, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q})
	}
	v42 := vlan("v42", 42) // as the frames have it
	w.moveAddr(t, v42)
	w.tags = []uint16{0x8100}
	defaultRoute(t, "v42", 1)
	drops := func(s *Shield) {
		t.Helper()
		blockAttacker(t, s)
		if w.passes(t, attackerIP) {
			t.Error("a tagged packet of the blocked source came through")
		}
	}
	for _, mode := range []Mode{Auto, Native} {
		s := openTest(t, Options{Interfaces: []string{"auto"}, Attach: mode})
		for range 2 {
			must(t, s.Attach())
			if at := one(t, s); at.Interface != hostDev || at.Mode != Native {
				t.Errorf("%s: %+v", mode, at)
			}
		}
		drops(s)
		must(t, s.Detach())
		s.Close()
	}
	for _, opts := range []Options{{Interfaces: []string{"v42"}}, {Interfaces: []string{"auto"}, Attach: Generic}} {
		s := openTest(t, opts)
		must(t, s.Attach())
		want := fallback()
		if opts.Attach == Generic {
			want = Generic
		}
		if at := one(t, s); at.Interface != "v42" || at.Mode != want {
			t.Errorf("%+v: %+v", opts, at)
		}
		drops(s)
		must(t, s.Detach())
		s.Close()
	}
	s := openTest(t, Options{Interfaces: []string{"v42"}, Attach: Native})
	wantHint(t, s.Attach(), "v42", "the device under it")
	s.Close()

	// A second VLAN for a guest.
	guest := vlan("v43", 43)
	br := addDevice(t, &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}})
	must(t, netlink.LinkSetMaster(guest, br))
	s = openTest(t, Options{Interfaces: []string{"auto"}})
	must(t, s.Attach())
	if at := one(t, s); at.Interface != "v42" || at.Mode != fallback() {
		t.Errorf("beside a guest's VLAN: %+v", at)
	}
	drops(s)
	// The guest leaves: from the VLAN device to the wire, not to both.
	must(t, netlink.LinkDel(guest))
	must(t, s.Attach())
	if fallback() == Generic { // there is a gap between the two, so that is for people to say
		must(t, s.Detach())
		must(t, s.Attach())
	}
	if at := one(t, s); at.Interface != hostDev || at.Mode != Native {
		t.Errorf("without the guest: %+v", at)
	}
	drops(s)
}

// A shielded interface becomes the port of a bond: the shield moves to the bond, natively where the kernel can, and a
// glob that matches both takes the bond.
func TestBond(t *testing.T) {
	w := newWire(t)
	s := openTest(t, Options{Interfaces: []string{"auto"}})
	blockAttacker(t, s)
	defaultRoute(t, hostDev, 1)
	must(t, s.Attach())
	if at := one(t, s); at.Interface != hostDev {
		t.Fatalf("%+v", at)
	}
	a := netlink.NewLinkAttrs()
	a.Name = "bond0"
	b := netlink.NewLinkBond(a)
	b.Mode = netlink.BOND_MODE_ACTIVE_BACKUP
	b.Miimon = 50
	bond := addDevice(t, b)
	must(t, netlink.LinkSetDown(w.dev))
	must(t, netlink.LinkSetMaster(w.dev, bond))
	must(t, netlink.LinkSetUp(w.dev))
	w.moveAddr(t, bond)
	w.dev = byName(t, hostDev)
	bond = byName(t, "bond0")
	w.dev.Attrs().HardwareAddr = bond.Attrs().HardwareAddr
	eventually(t, "the bond is up", func() bool { return byName(t, "bond0").Attrs().OperState == netlink.OperUp })
	defaultRoute(t, "bond0", 1)
	want := fallback()
	if v, err := features.LinuxVersionCode(); err == nil && v >= 5<<16|15<<8 {
		want = Native
	}
	for range 2 {
		must(t, s.Attach())
		if at := one(t, s); at.Interface != "bond0" || at.Mode != want {
			t.Errorf("%+v", at)
		}
	}
	if w.passes(t, attackerIP) {
		t.Error("a packet of the blocked source came through")
	}
	must(t, s.Detach())
	s.Close()

	s = openTest(t, Options{Interfaces: []string{"*"}})
	must(t, s.Attach())
	if got := fmt.Sprint(attachedTo(t, s)); got != "[bond0]" {
		t.Errorf("all: %s", got)
	}
}
