// Package bpf is the kernel side of mxshield and the only Go door to it: it loads the programs, attaches them to
// interfaces, keeps the tables of blocked prefixes, and reads the counters.
//
// The programs drop TCP packets to the protected ports from blocked sources, and nothing else. They do not decide
// whom to block, know nothing of origins, causes or clusters, and never see what is in a packet beyond the ports. They
// fail open: what cannot be read passes, an entry that has ended passes by itself, also when no agent lives.
//
// # What is where
//
//	shield.c      the two programs (XDP, and tcx for drivers without it) around one function
//	packet.h      Ethernet, VLAN, IP, TCP: to source and port
//	classify.h    protected port -> scope
//	exempt.h      local addresses that are not shielded
//	table.h       source and scope -> reason
//	maps.h        reasons, entries, maps: the format shared with Go
//	shield.go     Open, Close: the programs and the pins
//	tables.go     Set, Remove, Lookup, Each: netip.Prefix and time in and out
//	exempt.go     CheckExempt: the list of local addresses that are not shielded
//	attach.go     Attach, Detach, Attachments: programs on interfaces
//	interfaces.go names, globs and auto; devices.go: which of several devices that stand on each other
//	watch.go      Watch: interfaces come, go and change their names
//	rescue.go     Off, On: the same without an agent
//	needs.go      what kernel, file system and process must offer
//
// # Pins
//
// Everything is pinned, so that blocks, totals and dropping outlive the process, a crash, and an upgrade. Under
// [Options].Pins (a directory on a bpf file system):
//
//	exact-v4 exact-v6     HASH: u32 address, u64 upper half of the address -> struct entry
//	cidr-v4 cidr-v6       LPM_TRIE -> struct entry
//	state                 ARRAY[1]: number of CIDRs, clock
//	counters              PERCPU_ARRAY[64] of packets by reason
//	prog-xdp prog-tc      the programs, ports baked in; prog-tc only if it was ever needed
//	link-NAME             the attachment to interface NAME; '.' is written %2E and '%' %25, bpffs forbids dots
//	new-...               exists for a moment while something is replaced; a leftover is removed at start
//
// Open takes over the maps, loads new programs (the ports may have changed), and Attach puts them into the existing
// links in place, so there is no moment without a program. A pinned map of another layout is refused by name.
//
// # Units and keys
//
// Scope is a set of bits: [ScopeMX], [ScopeSubmission], none for a hole. Time is wall time here and nanoseconds of
// CLOCK_BOOTTIME in the kernel; only this package converts. Drops and counters are packets. Prefixes are canonical:
// no host bits, IPv4 never mapped.
//
// # Concurrency
//
// All methods of [Shield] may be called from several goroutines. There is one writer process: Open locks the directory.
// Off and On work beside it. Attach, Watch and DefaultInterfaces act in the network namespace of the
// calling thread.
package bpf
