package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Mode is how a program hangs on an interface.
type Mode string

const (
	Auto    Mode = "auto"    // native, else tcx, else generic
	Native  Mode = "native"  // XDP in the driver
	TCX     Mode = "tcx"     // on the skb, before anything else looks at it; kernel 6.6
	Generic Mode = "generic" // XDP on the skb: every driver, but copies packets to make them look like XDP's
)

// Modes are all of them.
var Modes = []Mode{Auto, Native, TCX, Generic}

// Attachment is a program of ours on an interface, as the kernel tells it.
type Attachment struct {
	Interface string
	Index     int
	Mode      Mode // never Auto
	LinkID    uint32
	ProgramID uint32
}

// Attach hangs the program on every interface of Options, and takes it off those it is on and should not be. Existing
// links get the new program in place: not one packet goes unseen. May be called again at any time (an interface came);
// what is right already stays as it is. One interface that fails does not keep the others from being shielded; the
// error tells of all that did.
//
// What this Shield attached to once stays shielded as long as it exists: under a new name, and without its default
// route (links bounce, leases are renewed, and on some drivers a new attachment takes the link down by itself, so that
// letting go and taking hold again might never end). Ports of a bond that was attached to are the exception.
func (s *Shield) Attach() error {
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	if err := s.pinAll(); err != nil {
		return err
	}
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list interfaces: %w", err)
	}
	errs := []error{s.followRenames()}
	names, auto, resolveErr := resolve(s.opts.Interfaces, links)
	errs = append(errs, resolveErr)
	for _, link := range links {
		// A program on a port keeps a native one off the bond. The gap falls into the link's own: to become a port it had
		// to go down.
		if bond := bondOf(links, link); bond != nil && slices.Contains(names, bond.Attrs().Name) {
			errs = append(errs, s.leavePort(names, link.Attrs().Name, bond.Attrs().Name))
		}
	}
	a := s.attacher()
	for i, name := range names {
		if under := s.tryUnderVLAN(a, links, name, auto[name]); under != "" {
			names[i] = under
			continue
		}
		at, err := a.attach(name, s.opts.Attach)
		if err == nil {
			s.settled[at.Index] = at.LinkID
		} else if _, err := netlink.LinkByName(name); errors.As(err, &netlink.LinkNotFoundError{}) {
			continue // it went in this moment; if the config names it, the next look says so
		}
		errs = append(errs, err)
	}
	pinned, err := linkPins(s.opts.Pins)
	errs = append(errs, err)
	for _, name := range pinned {
		if !slices.Contains(names, name) {
			errs = append(errs, s.letGo(links, names, name, resolveErr == nil))
		}
	}
	// Indexes are used again after a long time.
	maps.DeleteFunc(s.settled, func(index int, _ uint32) bool { return byIndex(links, index) == nil })
	maps.DeleteFunc(s.notNative, func(index int, _ bool) bool { return byIndex(links, index) == nil })
	return errors.Join(errs...)
}

// tryUnderVLAN attaches to the device under a VLAN device that auto chose, if that is the better place, and returns
// its name; see devices.go.
func (s *Shield) tryUnderVLAN(a *attacher, links []netlink.Link, name string, auto bool) string {
	dev := byLinkName(links, name)
	if dev == nil || !auto || s.opts.Attach != Auto && s.opts.Attach != Native {
		return ""
	}
	under := underVLAN(links, dev)
	if under == nil || s.notNative[under.Attrs().Index] {
		return ""
	}
	at, err := a.attach(under.Attrs().Name, Native)
	if err != nil {
		// Not again with every look: drivers may take the link down to find out.
		s.notNative[under.Attrs().Index] = true
		s.log.Info("no native XDP on the device under a VLAN device; attaching to the VLAN device itself",
			"interface", name, "under", under.Attrs().Name, "err", err)
		return ""
	}
	if s.settled[at.Index] != at.LinkID {
		s.log.Info("shielding the device under a VLAN device, and with it all its VLANs", "interface", name, "under", at.Interface)
	}
	s.settled[at.Index] = at.LinkID
	return at.Interface
}

// letGo takes the program off an interface that is not, or not any more, to be shielded. Known says that names are all
// that should be.
func (s *Shield) letGo(links []netlink.Link, names []string, name string, known bool) error {
	l, err := openLink(filepath.Join(s.opts.Pins, linkPin(name)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	at, live := l.attachment()
	gone := !live && l.gone()
	l.Close()
	switch {
	case gone:
		s.log.Info("an interface is gone", "interface", name)
	case !live || !known:
		return nil // it could not be asked, or it is not known what should be: better one too many
	case s.settled[at.Index] == at.LinkID && !s.replaced(links, names, at.Index):
		return nil
	default:
		s.log.Info("detaching from an interface that is not to be shielded any more", "interface", name)
	}
	if _, err := detachPin(s.opts.Pins, linkPin(name)); err != nil {
		return err
	}
	delete(s.settled, at.Index)
	return nil
}

// leavePort takes the program off the port of a bond that is to be shielded itself.
func (s *Shield) leavePort(names []string, port, bond string) error {
	if slices.Contains(names, port) { // the config names it
		return nil
	}
	at, err := detachPin(s.opts.Pins, linkPin(port))
	if at.Interface != "" {
		s.log.Info("detached from a port of a bond that is shielded itself", "interface", port, "bond", bond)
		delete(s.settled, at.Index)
	}
	return err
}

// replaced says whether a VLAN device is shielded by the device under it.
func (s *Shield) replaced(links []netlink.Link, names []string, index int) bool {
	dev := byIndex(links, index)
	if dev == nil {
		return false
	}
	under := underVLAN(links, dev)
	return under != nil && slices.Contains(names, under.Attrs().Name)
}

// followRenames gives pins the names that their interfaces have now.
func (s *Shield) followRenames() error {
	names, err := linkPins(s.opts.Pins)
	if err != nil {
		return err
	}
	type move struct{ from, to string }
	var moves []move
	var errs []error
	for _, name := range names {
		l, err := openLink(filepath.Join(s.opts.Pins, linkPin(name)))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if at, ok := l.attachment(); ok && at.Interface != name {
			moves = append(moves, move{name, at.Interface})
		}
		l.Close()
	}
	// Two may have changed names with each other, so all leave before one comes. Attach knows what to do with a pin that
	// a dying process left on its way.
	for _, m := range moves {
		errs = append(errs, os.Rename(filepath.Join(s.opts.Pins, linkPin(m.from)), filepath.Join(s.opts.Pins, newPrefix+linkPin(m.to))))
	}
	for _, m := range moves {
		if err := os.Rename(filepath.Join(s.opts.Pins, newPrefix+linkPin(m.to)), filepath.Join(s.opts.Pins, linkPin(m.to))); err != nil {
			errs = append(errs, err)
			continue
		}
		s.log.Info("an interface was renamed; it stays shielded", "old", m.from, "interface", m.to)
	}
	return errors.Join(errs...)
}

// Detach takes the programs off all interfaces. Tables and counters stay, Attach brings the programs back.
func (s *Shield) Detach() error {
	s.attachMu.Lock()
	defer s.attachMu.Unlock()
	clear(s.notNative) // with nothing attached every way is open again
	_, err := detachAll(s.opts.Pins)
	return err
}

// Attachments returns where programs of ours are, read from the kernel: not where they should be. Pinned links whose
// interface is gone are not among them.
func (s *Shield) Attachments() ([]Attachment, error) { return Attachments(s.opts.Pins) }

// Attachments does the same without a Shield.
func Attachments(pins string) ([]Attachment, error) {
	names, err := linkPins(pins)
	if err != nil {
		return nil, err
	}
	var all []Attachment
	for _, name := range names {
		l, err := openLink(filepath.Join(pins, linkPin(name)))
		if err != nil {
			return all, err
		}
		if at, ok := l.attachment(); ok {
			all = append(all, at)
		}
		l.Close()
	}
	return all, nil
}

func (s *Shield) attacher() *attacher {
	return &attacher{pins: s.opts.Pins, log: s.log, xdp: s.xdp, tc: s.tc, settled: s.settled}
}

// attacher hangs programs on interfaces, for a Shield and for On.
type attacher struct {
	pins string
	log  *slog.Logger
	xdp  *ebpf.Program
	tc   func() (*ebpf.Program, error)
	// By index the link that was found or made: what auto chose then is not tried again, since drivers may take the
	// link down for every attempt, and it is not worth a line in the log every time.
	settled map[int]uint32
}

// attach makes sure that the program is on the interface in the wanted mode.
func (a *attacher) attach(name string, want Mode) (Attachment, error) {
	at, err := a.attachTo(name, want)
	if err != nil {
		return at, notPermitted(fmt.Errorf("attach to %s: %w", name, err))
	}
	return at, nil
}

func (a *attacher) attachTo(name string, want Mode) (Attachment, error) {
	dev, err := netlink.LinkByName(name)
	if err != nil {
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			return Attachment{}, noInterface(name)
		}
		return Attachment{}, err
	}
	if t := dev.Attrs().EncapType; t != "ether" && t != "loopback" {
		return Attachment{}, hint(fmt.Errorf("its packets have no Ethernet header (%s)", t),
			"shield the interface the tunnel runs over")
	}
	old, err := a.current(name, dev)
	if err != nil {
		return Attachment{}, err
	}
	if old == nil {
		l, err := a.create(dev, want)
		if err != nil {
			return Attachment{}, err
		}
		at, err := a.keep(l, nil, name)
		if err == nil {
			a.log.Info("attached", "interface", name, "mode", at.Mode)
		}
		return at, err
	}
	defer old.Close()
	was := old.at.Mode
	if want == Auto && a.settled[old.at.Index] == old.at.LinkID {
		want = was
	}

	// auto with generic: native cannot be tried beside it, but tcx can, and native beside that. Without tcx (before 6.6)
	// generic stays: trying would make a gap at every start.
	if want == Auto && was == Generic {
		if l, err := a.createTCX(dev); err == nil {
			a.log.Info("moving from generic XDP to tcx", "interface", name)
			if _, err := a.keep(l, old, name); err != nil {
				return Attachment{}, err
			}
			return a.attachTo(name, Auto)
		}
	}
	// auto with tcx: the driver may have learned XDP since.
	if want == Auto && was == TCX {
		l, err := a.createXDP(dev, Native)
		if err == nil {
			a.log.Info("moving from tcx to native XDP", "interface", name)
			return a.keep(l, old, name)
		}
		a.log.Warn("attached at tcx: native XDP failed", "interface", name, "err", err)
		want = TCX
	}
	if want == was || want == Auto {
		if want == Auto && was == Generic {
			a.log.Warn("attached as generic XDP, which is slow; native XDP is tried again after `mxshieldctl off`", "interface", name)
		}
		prog, err := a.program(was)
		if err != nil {
			return Attachment{}, err
		}
		if err := old.Update(prog); err != nil {
			return Attachment{}, a.explain(dev, was, err)
		}
		at, ok := old.attachment()
		if !ok {
			return Attachment{}, errors.New("the interface went away")
		}
		return at, nil
	}

	a.log.Info("attaching in another mode", "interface", name, "old", was, "new", want)
	if want == TCX || was == TCX {
		// The two hooks are independent: first both, then the new one alone.
		l, err := a.create(dev, want)
		if err != nil {
			return Attachment{}, err
		}
		return a.keep(l, old, name)
	}
	// Native and generic XDP exclude each other, so there is no way round a moment without. If the new one fails,
	// the old one comes back.
	a.log.Warn("there is a moment without a program between native and generic XDP", "interface", name)
	if err := old.Detach(); err != nil {
		return Attachment{}, err
	}
	l, err := a.create(dev, want)
	if err != nil {
		back, backErr := a.create(dev, was)
		if backErr != nil {
			os.Remove(filepath.Join(a.pins, linkPin(name)))
			return Attachment{}, errors.Join(err, fmt.Errorf("and go back to %s: %w", was, backErr))
		}
		if _, keepErr := a.keep(back, old, name); keepErr != nil {
			return Attachment{}, errors.Join(err, keepErr)
		}
		return Attachment{}, err
	}
	return a.keep(l, old, name)
}

// current returns our pinned link of this interface, nil if there is none that lives. What is defunct is removed.
func (a *attacher) current(name string, dev netlink.Link) (*pinnedLink, error) {
	path := filepath.Join(a.pins, linkPin(name))
	tmp := filepath.Join(a.pins, newPrefix+linkPin(name))
	old, err := openLink(path)
	if errors.Is(err, fs.ErrNotExist) {
		old, err = nil, nil
	}
	if err != nil {
		return nil, err
	}
	if old != nil {
		if at, ok := old.attachment(); ok && at.Index == dev.Attrs().Index {
			old.at = at
			// A process died between attaching the new link and dropping the old one.
			if _, err := detachPin(a.pins, newPrefix+linkPin(name)); err != nil {
				return nil, err
			}
			return old, nil
		}
		a.log.Info("removing a link whose interface is gone or was made anew", "interface", name, "pin", path)
		// Detach too: it may hang on an interface that was renamed.
		_ = old.Detach()
		old.Close()
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove defunct link: %w", err)
		}
	}
	// The same, a moment later: the new link is the one that lives.
	if err := os.Rename(tmp, path); err == nil {
		return a.current(name, dev)
	}
	return nil, nil
}

// keep pins a new link, in the place of the old one if there is one.
func (a *attacher) keep(l link.Link, old *pinnedLink, name string) (Attachment, error) {
	path := filepath.Join(a.pins, linkPin(name))
	tmp := filepath.Join(a.pins, newPrefix+linkPin(name))
	defer l.Close() // the pin keeps it
	if err := l.Pin(tmp); err != nil {
		return Attachment{}, fmt.Errorf("pin link: %w", err)
	}
	if old != nil {
		if err := old.Detach(); err != nil {
			a.log.Warn("cannot detach the old link", "interface", name, "err", err)
		}
	}
	if err := os.Rename(tmp, path); err != nil {
		os.Remove(tmp)
		return Attachment{}, fmt.Errorf("pin link: %w", err)
	}
	pinned, err := openLink(path)
	if err != nil {
		return Attachment{}, err
	}
	defer pinned.Close()
	at, ok := pinned.attachment()
	if !ok {
		return Attachment{}, errors.New("the interface went away")
	}
	return at, nil
}

func (a *attacher) program(mode Mode) (*ebpf.Program, error) {
	if mode == TCX {
		return a.tc()
	}
	return a.xdp, nil
}

// create attaches anew.
func (a *attacher) create(dev netlink.Link, want Mode) (link.Link, error) {
	switch want {
	case TCX:
		return a.createTCX(dev)
	case Native, Generic:
		return a.createXDP(dev, want)
	}
	name := dev.Attrs().Name
	l, nativeErr := a.createXDP(dev, Native)
	if nativeErr == nil {
		return l, nil
	}
	// Somebody else's program is for people to decide about, not for us to go round.
	if errors.Is(nativeErr, errOtherProgram) {
		return nil, nativeErr
	}
	l, tcxErr := a.createTCX(dev)
	if tcxErr == nil {
		a.log.Warn("attached at tcx: native XDP failed", "interface", name, "err", nativeErr)
		return l, nil
	}
	l, err := a.createXDP(dev, Generic)
	if err != nil {
		return nil, errors.Join(nativeErr, tcxErr, err)
	}
	a.log.Warn("attached as generic XDP, which is slow: native XDP and tcx failed", "interface", name,
		"native", nativeErr, "tcx", tcxErr)
	return l, nil
}

func (a *attacher) createXDP(dev netlink.Link, mode Mode) (link.Link, error) {
	flags := link.XDPDriverMode
	if mode == Generic {
		flags = link.XDPGenericMode
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: a.xdp, Interface: dev.Attrs().Index, Flags: flags})
	if err != nil {
		return nil, a.explain(dev, mode, err)
	}
	return l, nil
}

func (a *attacher) createTCX(dev netlink.Link) (link.Link, error) {
	prog, err := a.tc()
	if err != nil {
		return nil, err
	}
	// At the head: before programs that might steer a packet past us.
	l, err := link.AttachTCX(link.TCXOptions{
		Program: prog, Interface: dev.Attrs().Index, Attach: ebpf.AttachTCXIngress, Anchor: link.Head(),
	})
	if err != nil {
		return nil, tcxError(err)
	}
	return l, nil
}

var errOtherProgram = errors.New("another XDP program is attached")

// explain turns the errno of an XDP attachment into what to do about it.
func (a *attacher) explain(dev netlink.Link, mode Mode, err error) error {
	name := dev.Attrs().Name
	err = fmt.Errorf("%s XDP: %w", mode, err)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
		now, nowErr := netlink.LinkByIndex(dev.Attrs().Index)
		if nowErr != nil || now.Attrs().Xdp == nil || now.Attrs().Xdp.ProgId == 0 {
			return err
		}
		id := now.Attrs().Xdp.ProgId
		text := fmt.Sprintf("attach: tcx in the config runs beside it; or take it off: `ip link set dev %s xdp off`, "+
			"or stop the program that attached it", name)
		who := programName(ebpf.ProgramID(id))
		if who == shieldProgMxshieldXdp {
			text = "it is mxshield's, from another pin directory: `mxshieldctl off` there, or stop that agent"
		}
		return hint(fmt.Errorf("%w: %q (id %d): %w", errOtherProgram, who, id, err), text)
	}
	if mode != Native {
		return err
	}
	// Drivers refuse large MTUs by one errno, XDP at all by another, and do not agree on which.
	mtu := dev.Attrs().MTU
	shrink := fmt.Sprintf("`ip link set dev %s mtu 1500` (on veth: of the peer too), or attach: tcx", name)
	large := mtu > 1500 && dev.Attrs().EncapType != "loopback"
	switch {
	case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, errENOTSUPP):
		text := "attach: auto takes tcx or generic instead"
		if dev.Type() == "vlan" {
			text += "; or shield the device under it, which carries its packets with their tags"
		}
		if large {
			text += fmt.Sprintf("; if the driver has XDP, the MTU of %d may be too large for it: ", mtu) + shrink
		}
		return hint(fmt.Errorf("the driver has no %w", err), text)
	case large && (errors.Is(err, unix.ERANGE) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EFAULT) || errors.Is(err, unix.E2BIG)):
		return hint(fmt.Errorf("the driver refuses, maybe because of the MTU of %d: %w", mtu, err), shrink)
	}
	return err
}

// errENOTSUPP is the kernel's internal number, which some drivers let out.
const errENOTSUPP = unix.Errno(524)

func tcxError(err error) error {
	err = fmt.Errorf("tcx: %w", err)
	if v, verr := features.LinuxVersionCode(); verr == nil && v < 6<<16|6<<8 {
		return hint(err, fmt.Sprintf("tcx needs kernel 6.6, this is %d.%d", v>>16, v>>8&0xff))
	}
	return err
}

// unknownName stands for the name of a program that this process may not look at.
const unknownName = "?"

func programName(id ebpf.ProgramID) string {
	prog, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return unknownName
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return unknownName
	}
	return info.Name
}

// Link pins. bpffs reserves dots in names, and VLAN interfaces have them.

var escapeName = strings.NewReplacer("%", "%25", ".", "%2E")
var unescapeName = strings.NewReplacer("%2E", ".", "%25", "%")

func linkPin(name string) string { return linkPrefix + escapeName.Replace(name) }

// linkPins returns the names of the interfaces that have a pinned link.
func linkPins(pins string) ([]string, error) {
	entries, err := os.ReadDir(pins)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read pin directory: %w", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutPrefix(e.Name(), linkPrefix); ok {
			names = append(names, unescapeName.Replace(name))
		}
	}
	return names, nil
}

// pinnedLink is a link of ours, read from its pin.
type pinnedLink struct {
	link.Link
	at Attachment
}

// openLink opens a pinned link and checks that it is one of ours.
func openLink(path string) (*pinnedLink, error) {
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return nil, fmt.Errorf("open pinned link %s: %w", path, err)
	}
	if err != nil {
		return nil, hint(fmt.Errorf("open pinned link %s: this is no link: %w", path, err), "remove it: `rm "+path+"`")
	}
	info, err := l.Info()
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("read pinned link %s: %w", path, err)
	}
	// The name needs CAP_SYS_ADMIN, which the agent does not want to have. Without it the folder is trusted: only root
	// pins there.
	who := programName(info.Program)
	if info.XDP() == nil && info.TCX() == nil || who != unknownName && who != shieldProgMxshieldXdp && who != shieldProgMxshieldTc {
		l.Close()
		return nil, hint(fmt.Errorf("open pinned link %s: it belongs to another program: %q", path, who),
			"see what pinned it there; `rm "+path+"` detaches that program")
	}
	return &pinnedLink{Link: l}, nil
}

// attachment asks the kernel where the link hangs; false if nowhere any more (in this network namespace).
func (l *pinnedLink) attachment() (Attachment, bool) {
	info, err := l.Info()
	if err != nil {
		return Attachment{}, false
	}
	at := Attachment{LinkID: uint32(info.ID), ProgramID: uint32(info.Program)}
	if x := info.XDP(); x != nil {
		at.Index = int(x.Ifindex)
	} else if t := info.TCX(); t != nil {
		at.Index, at.Mode = int(t.Ifindex), TCX
	}
	if at.Index == 0 {
		return Attachment{}, false
	}
	dev, err := netlink.LinkByIndex(at.Index)
	if err != nil {
		return Attachment{}, false
	}
	at.Interface = dev.Attrs().Name
	if at.Mode == TCX {
		q, err := link.QueryPrograms(link.QueryOptions{Target: at.Index, Attach: ebpf.AttachTCXIngress})
		return at, err == nil && slices.ContainsFunc(q.Programs, func(p link.AttachedProgram) bool { return p.ID == info.Program })
	}
	// The index may mean another interface in this namespace: the interface must say the same.
	xdp := dev.Attrs().Xdp
	if xdp == nil || xdp.ProgId != at.ProgramID {
		return Attachment{}, false
	}
	at.Mode = Native
	if xdp.AttachMode == nl.XDP_ATTACHED_SKB {
		at.Mode = Generic
	}
	return at, true
}

// gone says that the link hangs on no interface of this network namespace, by the kernel's word: if it could not be
// asked, it is not gone.
func (l *pinnedLink) gone() bool {
	info, err := l.Info()
	if err != nil {
		return false
	}
	index := 0
	if x := info.XDP(); x != nil {
		index = int(x.Ifindex)
	} else if t := info.TCX(); t != nil {
		index = int(t.Ifindex)
	}
	if index == 0 {
		return true
	}
	_, err = netlink.LinkByIndex(index)
	return errors.As(err, &netlink.LinkNotFoundError{})
}

// detachPin detaches the link of a pin for real, whoever else holds it, and removes the pin. The Attachment is what
// it was; its Interface is empty if it hung nowhere.
func detachPin(pins, name string) (Attachment, error) {
	path := filepath.Join(pins, name)
	l, err := openLink(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Attachment{}, nil
	}
	if err != nil {
		return Attachment{}, err
	}
	defer l.Close()
	at, ok := l.attachment()
	if !ok {
		at = Attachment{}
	}
	// Removing the pin would do if nobody else had the link open; an agent might.
	if err := l.Detach(); err != nil && ok {
		return at, fmt.Errorf("detach from %s: %w", at.Interface, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return at, fmt.Errorf("remove pin: %w", err)
	}
	return at, nil
}

// detachAll detaches every pinned link of ours and returns those that hung somewhere.
func detachAll(pins string) ([]Attachment, error) {
	entries, err := os.ReadDir(pins)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read pin directory: %w", err)
	}
	var were []Attachment
	var errs []error
	for _, e := range entries {
		if !strings.HasPrefix(strings.TrimPrefix(e.Name(), newPrefix), linkPrefix) {
			continue
		}
		at, err := detachPin(pins, e.Name())
		if at.Interface != "" {
			were = append(were, at)
		}
		errs = append(errs, err)
	}
	return were, errors.Join(errs...)
}
