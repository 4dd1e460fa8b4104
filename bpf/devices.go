package bpf

import (
	"slices"

	"github.com/vishvananda/netlink"
)

// Which device is the right one, when devices stand on each other.
//
//   - A bond or team: the master. Its program runs for packets of all its ports (native, if the drivers of all of them
//     have it), ports come and go under it, and the kernel refuses a program of its own on a port beside it. auto finds
//     the master by its route; a glob that matches master and ports takes the master alone.
//   - A bridge: the bridge, by the same way. Its ports carry other machines' packets too, and their mail is not ours
//     to drop. There is no native XDP on a bridge.
//   - A VLAN device: there is no native XDP on it, and at tcx its packets have an skb already. The device under it has
//     native XDP more often, and the program reads tags. So auto (and only auto) attaches there, natively, where all
//     that comes in over that wire is this host's own; then the shield holds for the other VLANs of the wire too.
//     Otherwise, or if that driver has no native XDP, it attaches to the VLAN device (tcx, before 6.6 generic). From
//     generic there it does not move down by itself: the kernel allows no program under a device that has one, so
//     there is no way without a gap. `mxshieldctl off` and `on` are that way.
//
// What the config names is obeyed.

func byIndex(links []netlink.Link, index int) netlink.Link {
	if index == 0 {
		return nil
	}
	i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Index == index })
	if i < 0 {
		return nil
	}
	return links[i]
}

func byLinkName(links []netlink.Link, name string) netlink.Link {
	i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Name == name })
	if i < 0 {
		return nil
	}
	return links[i]
}

// bondOf returns the bond or team that dev is a port of, nil if it is none.
func bondOf(links []netlink.Link, dev netlink.Link) netlink.Link {
	master := byIndex(links, dev.Attrs().MasterIndex)
	if master != nil && (master.Type() == "bond" || master.Type() == "team") {
		return master
	}
	return nil
}

// underVLAN returns the device under a VLAN device, through both tags if there are two; nil if dev is no VLAN device
// or if not all that comes in there is surely this host's own: a bridge has it, or a bridge, a bond or a container has
// one of the devices on it.
func underVLAN(links []netlink.Link, dev netlink.Link) netlink.Link {
	for range 2 {
		if dev.Type() != "vlan" {
			break
		}
		a := dev.Attrs()
		if a.MasterIndex != 0 || a.NetNsID >= 0 && byIndex(links, a.ParentIndex) == nil {
			return nil
		}
		under := byIndex(links, a.ParentIndex)
		if under == nil || under.Attrs().MasterIndex != 0 {
			return nil
		}
		for _, other := range links {
			o := other.Attrs()
			// A veth names its peer as its parent, which is another thing.
			if o.ParentIndex != under.Attrs().Index || other.Type() == "veth" {
				continue
			}
			if other.Type() != "vlan" || o.MasterIndex != 0 {
				return nil
			}
		}
		dev = under
		if dev.Type() != "vlan" {
			return dev
		}
	}
	return nil // no VLAN device, or more tags than the program reads
}
