//go:build linux

package lab

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// nowhere is a hardware address that nobody on the segment has.
var nowhere = net.HardwareAddr{0x02, 0, 0, 0, 0, 0x99}

// Cut parts mail hosts, given by their numbers in MX: whatever a host of one side sends to one of the other vanishes,
// without an error, in both directions and families. All still reach Net, and Net reaches them. Mend undoes it.
func (t *Topology) Cut(one, other []int) error {
	return t.neighbours(one, other, func(nl *netlink.Handle, n *netlink.Neigh) error {
		n.HardwareAddr, n.State = nowhere, netlink.NUD_PERMANENT
		return nl.NeighSet(n)
	})
}

// Mend undoes Cut.
func (t *Topology) Mend(one, other []int) error {
	return t.neighbours(one, other, func(nl *netlink.Handle, n *netlink.Neigh) error {
		if err := nl.NeighDel(n); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
		return nil
	})
}

// neighbours does something to what each host of a side knows of each of the other's.
func (t *Topology) neighbours(one, other []int, do func(*netlink.Handle, *netlink.Neigh) error) error {
	half := func(from, to []int) error {
		for _, i := range from {
			err := t.MX[i].onLink("eth0", func(nl *netlink.Handle, link netlink.Link) error {
				for _, j := range to {
					for family, ip := range map[int]net.IP{unix.AF_INET: MXAddr4(j).AsSlice(), unix.AF_INET6: MXAddr6(j).AsSlice()} {
						if err := do(nl, &netlink.Neigh{LinkIndex: link.Attrs().Index, Family: family, IP: ip}); err != nil {
							return fmt.Errorf("neighbour %s: %w", ip, err)
						}
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	}
	return errors.Join(half(one, other), half(other, one))
}
