// Package bpf is the kernel side of mxshield and the only Go door to it: it loads the programs, attaches them to
// interfaces, keeps the tables of blocked prefixes, and reads the counters.
//
// The programs drop TCP packets to the protected ports from blocked sources, and nothing else. They do not decide
// whom to block, know nothing of origins, causes or clusters, and never see what is in a packet beyond the ports. They
// fail open: what cannot be read passes, an entry that has ended passes by itself, also when no agent lives.
//
// # What is where
//
//	shield.c      the two programs (XDP, and tcx for drivers without it), and the one that reads the clock
//	shield.h      the way of a packet: parse, port, decision, counter
//	packet.h      Ethernet, VLAN, IP, TCP: to source and port
//	classify.h    protected port -> scope
//	exempt.h      local addresses that are not shielded
//	decide.h      source and scope -> reason: the exact tables, then the CIDRs
//	table.h       the exact tables: cuckoo hashing, Bloom filter, and why two CPUs do not trip over each other
//	admit.h       a new connection: may it? admission.h: who is allowed; rate.h: the limits; hold.h: the first SYN
//	sample.h      one dropped packet in 1024 is told
//	clock.h       what time it is
//	maps.h        lines, entries, maps: the format shared with Go
//	reason.h      reasons and scopes: the words shared with Go
//	shield.go     Open, Close: the programs and the pins
//	generation.go growing and other changes of the tables, without a gap
//	tables.go     Set, Remove, Lookup, Each: netip.Prefix and time in and out
//	exempt.go     CheckExempt: the list of local addresses that are not shielded
//	admission.go  SetAllowed, HoldAlive, FirstSeen, Release, Forget, Known: limits and hold
//	sample.go     Samples: dropped packets
//	exact.go      the writer's side of table.h
//	clock.go      wall time and the programs' time
//	attach.go     Attach, Detach, Attachments: programs on interfaces
//	interfaces.go names, globs and auto; devices.go: which of several devices that stand on each other
//	watch.go      Watch: interfaces come, go and change their names
//	rescue.go     Off, On: the same without an agent
//	needs.go      what kernel, file system and process must offer
//	firstversion.go  taking over the tables of the first version
//
// hash.h, hash.c, bench.h, bench.c and broken.c are for tests and benchmarks.
//
// # Pins
//
// Everything is pinned, so that blocks, totals and dropping outlive the process, a crash, and an upgrade. Under
// [Options].Pins (a directory on a bpf file system):
//
//	link-NAME             the attachment to interface NAME; '.' is written %2E and '%' %25, bpffs forbids dots
//	new-...               exists for a moment while something is replaced; a leftover is removed at start
//	gen-N/                a generation: tables and the programs on them. Normally one, two for a moment
//
// and in gen-N:
//
//	exact-v4 exact-v6     ARRAY of lines of 64 bytes: 5 addresses, or 4 upper halves of addresses, until and drops of each
//	bloom-v4 bloom-v6     ARRAY of u64, the filters in front of them
//	cidr-v4 cidr-v6       LPM_TRIE -> struct cidr_value
//	cidr-near             ARRAY of u64, the bitmap in front of them
//	state                 ARRAY[1]: seeds, sizes, moves, clock
//	counters              PERCPU_ARRAY[64] of packets by reason
//	seen                  LRU_HASH of sources that the hold has seen; made anew if it is missing or of another size
//	prog-xdp prog-tc      the programs, ports baked in; prog-tc only if it was ever needed
//
// The maps of limits and samples are not pinned: what is in them is worth nothing to another process.
//
// Open takes over the maps, loads new programs (the ports may have changed), and Attach puts them into the existing
// links in place, so there is no moment without a program. A pinned map of another layout is refused by name, but for
// the layout of the first version, which is converted. The exact tables begin small and grow, as Set needs it, up to
// [Options].MaxExact; while one grows, both sizes are in memory.
//
// # Units and keys
//
// Scope is a set of bits: [ScopeMX], [ScopeSubmission], none for a hole. Time is wall time here and units of
// half a second to a second in the kernel, rounded up; only this package converts. Drops and counters are packets. Prefixes are canonical:
// no host bits, IPv4 never mapped.
//
// # Concurrency
//
// All methods of [Shield] may be called from several goroutines. There is one writer process: Open locks the directory.
// Off and On work beside it. Attach, Watch and DefaultInterfaces act in the network namespace of the
// calling thread.
package bpf
