// Package control is how people and scripts talk to the agent: HTTP with JSON over a unix socket, the types of it,
// the server and the client.
//
//	GET  /v1/status
//	GET  /v1/list?within=192.0.2.0/24&cause=dictionary&kind=block&origin=mx1&all=1&limit=100
//	GET  /v1/why?prefix=192.0.2.7
//	GET  /v1/top?limit=20
//	GET  /v1/lookup?address=192.0.2.7
//	GET  /v1/reputation?address=192.0.2.25&limit=100
//	POST /v1/block     {"prefix": "192.0.2.7", "for": "72h", "reason": "..."}
//	POST /v1/unblock   {"prefixes": ["192.0.2.7"], "hold": "1h"}
//	POST /v1/allow     {"prefix": "192.0.2.0/24", "for": "", "reason": "..."}
//	POST /v1/disallow  {"prefix": "192.0.2.0/24"}
//	GET  /v1/peers
//	GET  /v1/cluster/keys
//	POST /v1/cluster/key {"do": "add", "key": "..."}, {"do": "use", "id": "...", "force": false}, "remove" likewise
//	POST /v1/origin    {"do": "suspend", "node": "mx2"}, "resume" and "clear" likewise
//	POST /v1/off       {"reason": "..."}
//	POST /v1/on        {}
//
// Who may connect may do all of this: the socket's mode (root and group mxshield) is the permission. The peer's
// user goes into the audit trail. New fields may come, but those that there are keep their names and meaning: this is also what
// mxshieldctl -o json prints. Times are RFC 3339, in UTC. Errors are {"error": "...", "hint": "..."} with a 4xx or 5xx status.
package control

import (
	"net/netip"
	"time"

	"github.com/mxshield/mxshield/agent/block"
)

// DefaultSocket is where the agent listens.
const DefaultSocket = "/run/mxshield/control.sock"

// Status is the answer to status.
type Status struct {
	Version string    `json:"version"`
	Node    string    `json:"node"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Now     time.Time `json:"now"`
	DryRun  bool      `json:"dry_run"`
	Off     *Off      `json:"off,omitempty"` // set: nothing is dropped until `on`

	Interfaces []Interface       `json:"interfaces"`
	Ports      Ports             `json:"ports"`
	Blocks     block.Counts      `json:"blocks"`
	Accepted   int               `json:"blocked_with_accepted_mail"` // blocked sources that also had mail accepted
	Packets    map[string]uint64 `json:"packets"`                    // by reason, since the maps were made
	Ended      uint64            `json:"sessions_ended"`             // live sessions of blocked sources, since the agent started
	Inputs     []Input           `json:"inputs"`
	Kernel     []KernelTable     `json:"kernel,omitempty"`
	Events     map[string]uint64 `json:"events"`      // by kind, since the agent started
	Made       map[string]uint64 `json:"blocks_made"` // by cause, by this agent since it started
	Sources    int               `json:"sources"`

	EventsByMTA map[string]map[string]uint64 `json:"events_by_mta"` // the same events
	SamplesLost uint64                       `json:"samples_lost"`  // of dropped packets, for which the agent was too busy

	State    State          `json:"state"`
	Never    []block.Never  `json:"never"` // without those of the allows by name
	Senders  []Sender       `json:"senders,omitempty"`
	DNS      *DNS           `json:"dns,omitempty"`     // set: lists are asked, or names
	Own      *OwnCount      `json:"own,omitempty"`     // set: own addresses are watched
	Publish  *Publish       `json:"publish,omitempty"` // set: the table is served as a DNS list
	Hold     *Hold          `json:"hold,omitempty"`    // set: dns.before_accept
	Limits   *Limits        `json:"limits,omitempty"`  // absent: new connections are not limited
	Cluster  *ClusterStatus `json:"cluster,omitempty"`
	Metrics  string         `json:"metrics,omitempty"` // where the Prometheus endpoint listens
	Warnings []string       `json:"warnings,omitempty"`
}

// KernelTable is how full a table of the kernel is: exact_v4, exact_v6 (single addresses and /64s), cidr_v4, cidr_v6.
type KernelTable struct {
	Table    string `json:"table"`
	Entries  int    `json:"entries"`
	Capacity int    `json:"capacity"` // an exact table grows before it is full
}

// Off says since when and why the shield is detached.
type Off struct {
	Since  time.Time `json:"since"`
	By     string    `json:"by"`
	Reason string    `json:"reason,omitempty"`
}

// Interface is one place where the XDP program sits.
type Interface struct {
	Name string `json:"name"`
	Mode string `json:"mode"` // native, tcx, generic
}

// Ports are the protected ports by group.
type Ports struct {
	MX         []uint16 `json:"mx"`
	Submission []uint16 `json:"submission"`
}

// Input is one log that is read.
type Input struct {
	ID         string    `json:"id"`
	Of         string    `json:"of,omitempty"` // the glob that it is a file of
	State      string    `json:"state"`
	Detail     string    `json:"detail,omitempty"`
	Lag        int64     `json:"lag_bytes"`
	LagSeconds float64   `json:"lag_seconds"` // how old the newest event is that was read, while there is more to read
	Lines      uint64    `json:"lines"`
	Truncated  uint64    `json:"truncated_lines,omitempty"`
	Suppressed uint64    `json:"suppressed_messages,omitempty"`
	Untrusted  uint64    `json:"untrusted_messages,omitempty"` // written by users who are not the MTA's, and ignored
	Dropped    uint64    `json:"dropped_datagrams,omitempty"`
	LastLine   time.Time `json:"last_line,omitzero"`
	LastError  string    `json:"last_error,omitempty"`
}

// Sender is an allow by name: spf:NAME or domain:NAME.
type Sender struct {
	Rule      string    `json:"rule"`
	Preset    bool      `json:"preset,omitempty"` // from the shipped list
	Ranges    int       `json:"ranges"`           // known now; of a domain: addresses proved to belong to it
	Refreshed time.Time `json:"refreshed,omitzero"`
	Next      time.Time `json:"next,omitzero"`
	Error     string    `json:"error,omitempty"`
	Notes     []string  `json:"notes,omitempty"` // what of an SPF record is not taken over, and why
}

// OwnCount is how many own addresses are watched, and how many of them are on a list.
type OwnCount struct {
	Watched int            `json:"watched"`
	Listed  int            `json:"listed"`
	Lists   map[string]int `json:"lists"` // how many of them each list lists
}

// Publish is the table served as a DNS list.
type Publish struct {
	Zone    string `json:"zone"`
	Listen  string `json:"listen"`
	Queries uint64 `json:"queries"`
	Listed  uint64 `json:"listed"`  // answers that list an address
	Refused uint64 `json:"refused"` // of others than dns.publish.clients
}

// State is the state file.
type State struct {
	Path  string `json:"path"`
	Bytes int64  `json:"bytes"`
	Error string `json:"error,omitempty"` // why the last write failed
}

// Limits are new connections a second, 0 is no limit; and how many may come at once after silence.
type Limits struct {
	SYNPerSource int `json:"syn_per_source"`
	SourceBurst  int `json:"source_burst"`
	SYNTotal     int `json:"syn_total"`
	TotalBurst   int `json:"total_burst"`
}

// Top is the answer to top: whose packets are dropped now. Rates are packets per second, estimated out of samples.
type Top struct {
	Now         time.Time          `json:"now"`
	SampleEvery int                `json:"sample_every"` // one dropped packet of so many is a sample
	Window      string             `json:"window"`       // rates are averages of about this time
	Lost        uint64             `json:"samples_lost"` // for which the agent was too busy, since it started
	Reasons     map[string]float64 `json:"reasons"`      // rates of all sources
	Talkers     []Talker           `json:"talkers"`      // the loudest first
}

// Talker is a source of dropped packets.
type Talker struct {
	Source  netip.Prefix       `json:"source"`          // IPv4 /32, IPv6 /64
	Rate    float64            `json:"rate"`            // at least
	Error   float64            `json:"error,omitempty"` // how much more it may be
	Reasons map[string]float64 `json:"reasons"`
	Ports   []uint16           `json:"ports"` // 0: out of reach
	Last    time.Time          `json:"last"`
	Block   netip.Prefix       `json:"block,omitzero"` // the entry that decides about it, if one does
	Cause   string             `json:"cause,omitempty"`
	Drops   uint64             `json:"drops,omitempty"` // packets dropped because of that entry, exactly
}

// Listed is one row of list.
type Listed struct {
	block.Listed
	Drops uint64 `json:"drops"` // packets dropped by this prefix since the kernel has it
}

// List is the answer to list. Total counts all matches, of which Entries are the newest.
type List struct {
	Entries []Listed `json:"entries"`
	Total   int      `json:"total"`
}

// Lookup is the answer to lookup: all that is known or can be asked about an address, for a ticket. No key of a list is in it.
type Lookup struct {
	Address   netip.Addr     `json:"address"`
	Node      string         `json:"node"`
	Now       time.Time      `json:"now"`
	Decision  block.Decision `json:"decision"`
	Words     string         `json:"words"` // the decision as a sentence
	Lists     []ListAnswer   `json:"lists"`
	Sum       float64        `json:"sum"` // of all points
	Threshold float64        `json:"threshold"`
	RDNS      string         `json:"rdns"`              // verified, none, mismatch, temporary
	Names     []Name         `json:"names,omitempty"`   // claimed by PTR records, at most 8
	Allowed   string         `json:"allowed,omitempty"` // the rule by which it is never blocked automatically
	Warnings  []string       `json:"warnings,omitempty"`
}

// Reputation is the answer to reputation: what DNS lists say of own addresses, and what they said in the last year.
type Reputation struct {
	Now    time.Time         `json:"now"`
	Own    []OwnAddress      `json:"own"`    // those that are listed first
	Events []ReputationEvent `json:"events"` // the newest first
}

// OwnAddress is one address that is watched.
type OwnAddress struct {
	Address netip.Addr    `json:"address"`
	Asked   time.Time     `json:"asked,omitzero"`
	Next    time.Time     `json:"next,omitzero"`
	Lists   []OwnStanding `json:"lists"`
}

// OwnStanding is what a list said last, as far as it could be asked; Why says why it could not be asked just now.
type OwnStanding struct {
	ListAnswer
	Since   time.Time `json:"since,omitzero"`
	Checked time.Time `json:"checked,omitzero"`
}

// ReputationEvent is a listing of an own address, its end, or a change of it.
type ReputationEvent struct {
	Time    time.Time    `json:"time"`
	Address netip.Addr   `json:"address"`
	List    string       `json:"list"`
	What    string       `json:"what"` // listed, delisted, changed
	Codes   []netip.Addr `json:"codes,omitempty"`
	Words   string       `json:"words,omitempty"`
	TXT     string       `json:"txt,omitempty"`
}

// Name is a reverse name of an address; a claim if it does not lead back to it.
type Name struct {
	Name     string `json:"name"`
	Verified bool   `json:"verified"`
}

// ListAnswer is what one DNS list says of an address.
type ListAnswer struct {
	Zone   string       `json:"zone"`
	Says   string       `json:"says"` // listed, welcome, neutral, clean, unknown, no_ipv6
	Codes  []netip.Addr `json:"codes,omitempty"`
	Points float64      `json:"points"`
	Words  string       `json:"words,omitempty"`
	TXT    string       `json:"txt,omitempty"`  // the list's own text
	Page   string       `json:"page,omitempty"` // where its owner looks it up and asks for removal
	Why    string       `json:"why,omitempty"`  // it is unknown
}

// Why is the answer to why.
type Why struct {
	Prefix   netip.Prefix   `json:"prefix"`
	Decision block.Decision `json:"decision"`
	Words    string         `json:"words"` // the decision as a sentence
	Drops    uint64         `json:"drops"` // packets dropped, of the entry that decides
	Now      time.Time      `json:"now"`
	Entries  []block.Entry  `json:"entries,omitempty"` // that cover it, whether they hold or not
	// Evidence is what the log said about the source up to the block; Known what is known of it now.
	Evidence *Evidence `json:"evidence,omitempty"`
	Known    *Evidence `json:"known,omitempty"`
	Lists    string    `json:"lists,omitempty"`  // what DNS lists said of the source lately
	Before   string    `json:"before,omitempty"` // what they said before its connection was accepted
	History  []Audit   `json:"history,omitempty"`
	Unblock  string    `json:"unblock,omitempty"` // what an unblock would do
	Warnings []string  `json:"warnings,omitempty"`
}

// Evidence is the counts and a few redacted sample lines behind a verdict.
type Evidence struct {
	Prefix    netip.Prefix      `json:"prefix"`
	Words     string            `json:"words"`
	Score     float64           `json:"score"`
	Threshold float64           `json:"threshold"`
	Counts    map[string]uint32 `json:"counts,omitempty"`
	Accepted  uint32            `json:"accepted"`
	First     time.Time         `json:"first,omitzero"`
	Last      time.Time         `json:"last,omitzero"`
	Samples   []string          `json:"samples,omitempty"`
}

// Audit is one line of an address's history.
type Audit struct {
	Time   time.Time    `json:"time"`
	Who    string       `json:"who"`
	Action string       `json:"action"`
	Prefix netip.Prefix `json:"prefix,omitzero"`
	Detail string       `json:"detail,omitempty"`
}

// BlockRequest asks for a block or an allow. For "" takes the default (block: the configured time; allow: no end),
// "forever" has no end.
type BlockRequest struct {
	Prefix string `json:"prefix"`
	For    string `json:"for,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// UnblockRequest asks for clears. Hold "" is one hour, "0s" none.
type UnblockRequest struct {
	Prefixes []string `json:"prefixes"`
	Hold     string   `json:"hold,omitempty"`
	Reason   string   `json:"reason,omitempty"`
}

// OffRequest asks to detach.
type OffRequest struct {
	Reason string `json:"reason,omitempty"`
}

// Done is the answer to a change.
type Done struct {
	Words   string         `json:"words"`
	Results []block.Result `json:"results,omitempty"`
}

// Error is an error of the agent, as it travels.
type Error struct {
	Status int    `json:"-"`
	Text   string `json:"error"`
	Hint   string `json:"hint,omitempty"`
}

func (e *Error) Error() string { return e.Text }

// HintText tells what to do about it.
func (e *Error) HintText() string { return e.Hint }
