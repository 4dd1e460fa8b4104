package control

// ClusterStatus is what status says of the cluster; peers says more.
type ClusterStatus struct {
	Addr      string   `json:"addr,omitempty"` // where others reach this node; empty: the port is not open yet
	Peers     int      `json:"peers"`          // other members, gone ones included, and configured peers that nobody answers for
	Alive     int      `json:"alive"`          // of these
	Learned   int      `json:"learned"`        // entries of other nodes, whether they hold or not
	Lag       uint64   `json:"lag"`            // entries that others have and this node does not, as far as it knows
	Suspended []string `json:"suspended,omitempty"`
}
