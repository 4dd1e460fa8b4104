package control

import (
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// A ClusterAgent does what is asked about the other nodes. Without a cluster in the config, all but Peers fail.
type ClusterAgent interface {
	Peers() Peers
	Keys() ([]Key, error)
	ChangeKey(who string, r KeyRequest) (words string, err error)
	ChangeOrigin(who string, r OriginRequest) (words string, err error)
}

// ClusterStatus is what status says of the cluster; peers says more.
type ClusterStatus struct {
	Addr      string   `json:"addr,omitempty"` // where others reach this node; empty: the port is not open yet
	Peers     int      `json:"peers"`          // other members, gone ones included, and configured peers that nobody answers for
	Alive     int      `json:"alive"`          // of these
	Learned   int      `json:"learned"`        // entries of other nodes, whether they hold or not
	Lag       uint64   `json:"lag"`            // entries that others have and this node does not, as far as it knows
	Suspended []string `json:"suspended,omitempty"`
	// States is how many of the peers are in which state, ClockOffset and Counters are as in Peers.
	States      map[string]int    `json:"states"`
	ClockOffset float64           `json:"clock_offset"`
	Counters    map[string]uint64 `json:"counters"`
}

// Peers is the answer to peers.
type Peers struct {
	Node      string `json:"node"`
	Clustered bool   `json:"clustered"`      // the config has a cluster
	Addr      string `json:"addr,omitempty"` // where others reach this node; empty: the port is not open yet
	Encrypted bool   `json:"encrypted"`
	// ClockOffset is how far this node's clock is ahead of the median of the others', in seconds.
	ClockOffset float64 `json:"clock_offset"`
	// Muted tells why this node tells the others nothing new; empty: it does.
	Muted   string `json:"muted,omitempty"`
	Members []Peer `json:"members"` // this node is among them
	// Counters are totals since the agent started: of messages and connections, and of what was wrong with them.
	Counters map[string]uint64 `json:"counters"`
	Warnings []string          `json:"warnings,omitempty"`
}

// Peer is a node of the cluster, this one included, or a configured peer that nobody answers for, or one that went long ago
// and of which entries are left.
type Peer struct {
	Name    string    `json:"name"` // of an unreached peer: as the config has it
	Self    bool      `json:"self,omitempty"`
	State   string    `json:"state"` // alive, failed, left, incompatible, unreached, gone
	Since   time.Time `json:"since,omitzero"`
	Addr    string    `json:"addr,omitempty"`
	Version string    `json:"version,omitempty"` // of the agent
	Wire    uint32    `json:"wire,omitempty"`    // version of the protocol that both speak; 0: none
	WireMin uint32    `json:"wire_min,omitempty"`
	WireMax uint32    `json:"wire_max,omitempty"`
	Key     string    `json:"key,omitempty"` // id of the key it seals with
	Keys    []string  `json:"keys,omitempty"`
	// ClockOffset is how far its clock is ahead of ours, in seconds, give or take half of RTT. Absent: not measured yet.
	ClockOffset *float64 `json:"clock_offset,omitempty"`
	RTT         *float64 `json:"rtt,omitempty"`    // seconds
	Queued      int      `json:"queued,omitempty"` // bytes that wait for it
	// Entries is how many of its entries this node has, and Lag how many it lacks, as far as it knows.
	Entries   int    `json:"entries"`
	Lag       uint64 `json:"lag"`
	Suspended bool   `json:"suspended,omitempty"` // nothing it says is enforced here
	// OverBudget is how many of its automatic blocks are not enforced because there are too many.
	OverBudget int    `json:"over_budget,omitempty"`
	Problem    string `json:"problem,omitempty"`
}

// Key is a key of the cluster.
type Key struct {
	ID      string   `json:"id"`
	Held    bool     `json:"held"` // by this node
	Used    bool     `json:"used"` // this node seals with it
	HeldBy  []string `json:"held_by"`
	UsedBy  []string `json:"used_by"`
	Missing []string `json:"missing"` // members and configured peers that are not known to hold it
}

// Keys is the answer to cluster key list.
type Keys struct {
	Keys []Key `json:"keys"`
}

// KeyRequest asks to change the keys of this node. Key is for add, ID for use and remove.
type KeyRequest struct {
	Do    string `json:"do"` // add, use, remove
	Key   string `json:"key,omitempty"`
	ID    string `json:"id,omitempty"`
	Force bool   `json:"force,omitempty"`
}

// OriginRequest asks to change what counts of what a node says.
type OriginRequest struct {
	Do   string `json:"do"` // suspend, resume, clear
	Node string `json:"node"`
}

func (s *Server) cluster(mux *http.ServeMux, get func(path string, f func(q url.Values) (any, error))) {
	get("/v1/peers", func(url.Values) (any, error) { return s.agent.Peers(), nil })
	get("/v1/cluster/keys", func(url.Values) (any, error) {
		list, err := s.agent.Keys()
		return Keys{list}, err
	})
	post(mux, s, "/v1/cluster/key", func(who string, r KeyRequest) (any, error) {
		switch {
		case r.Do != "add" && r.Do != "use" && r.Do != "remove":
			return nil, bad(fmt.Sprintf("%.20q is nothing to do with a key", r.Do), "add, use or remove")
		case (r.Do == "add") != (r.Key != "") || (r.Do == "add") == (r.ID != ""):
			return nil, bad("add takes the key, use and remove take its id", "")
		}
		words, err := s.agent.ChangeKey(who, r)
		return Done{Words: words}, err
	})
	post(mux, s, "/v1/origin", func(who string, r OriginRequest) (any, error) {
		if r.Do != "suspend" && r.Do != "resume" && r.Do != "clear" {
			return nil, bad(fmt.Sprintf("%.20q is nothing to do with an origin", r.Do), "suspend, resume or clear")
		}
		if r.Node == "" || len(r.Node) > 255 {
			return nil, bad("give the name of a node", "`mxshieldctl peers` lists them")
		}
		words, err := s.agent.ChangeOrigin(who, r)
		return Done{Words: words}, err
	})
}
