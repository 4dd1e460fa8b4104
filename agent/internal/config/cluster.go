package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/mxshield/mxshield/gossip"
)

// maxPeers bounds the list; the cluster is meant for up to 200 nodes, and one name may stand for many.
const maxPeers = 200

// Cluster says who this node is among others, and whom it knows.
type Cluster struct {
	Name      string   // default: the host's name
	Bind      string   // host:port; empty: 0.0.0.0:7946
	Advertise string   // empty: found by itself
	Peers     []string // addresses and names, with or without a port
	KeyFile   string   // empty only if Bind is loopback
	Label     string   // empty: mxshield
}

type clusterFile struct {
	Name      string   `yaml:"name"`
	Bind      string   `yaml:"bind"`
	Advertise string   `yaml:"advertise"`
	Peers     []string `yaml:"peers"`
	KeyFile   string   `yaml:"key_file"`
	Label     string   `yaml:"label"`
}

func (c *checker) cluster(f *clusterFile) {
	if f == nil {
		return
	}
	// hinted hands the other room's error on with its hint.
	hinted := func(path string, err error) {
		var h interface{ HintText() string }
		text := ""
		if errors.As(err, &h) {
			text = h.HintText()
		}
		if err != nil {
			c.fault(path, text, "%v", err)
		}
	}
	cl := &Cluster{f.Name, f.Bind, f.Advertise, f.Peers, f.KeyFile, f.Label}
	if cl.Name == "" {
		cl.Name, _ = os.Hostname()
	}
	hinted("$.cluster.name", gossip.CheckName(cl.Name))
	if cl.Label != "" {
		hinted("$.cluster.label", gossip.CheckLabel(cl.Label))
	}
	loopback := false
	if cl.Bind != "" {
		bind, err := gossip.ParseBind(cl.Bind)
		hinted("$.cluster.bind", err)
		loopback = bind.Addr().IsLoopback()
		if err == nil && bind.Port() == 0 {
			c.fault("$.cluster.bind", fmt.Sprintf("the usual one is %d, the same on every node", gossip.DefaultPort), "port 0 is no port that peers could know")
		}
	}
	if cl.Advertise != "" {
		_, err := gossip.ParseAdvertise(cl.Advertise)
		hinted("$.cluster.advertise", err)
	}
	switch {
	case cl.KeyFile == "" && !loopback:
		c.fault("$.cluster", "make one with `mxshieldctl cluster key new > /etc/mxshield/cluster.key`, copy that file to every node, and name it here; without a key only a loopback address may be bound", "key_file is missing")
	case cl.KeyFile != "" && !filepath.IsAbs(cl.KeyFile):
		c.fault("$.cluster.key_file", "give the whole path", "%q is not absolute", cl.KeyFile)
	case cl.KeyFile != "":
		cl.KeyFile = filepath.Clean(cl.KeyFile)
	}
	if len(cl.Peers) > maxPeers {
		c.fault("$.cluster.peers", "a few that are always there are enough: members tell each other of the rest", "%d peers are too many: at most %d", len(cl.Peers), maxPeers)
		return
	}
	for i, p := range cl.Peers {
		at := fmt.Sprintf("$.cluster.peers[%d]", i)
		hinted(at, gossip.CheckPeer(p))
		if slices.Contains(cl.Peers[:i], p) {
			c.fault(at, "take one out", "%.100q stands there twice", p)
		}
	}
	c.cfg.Cluster = cl
}
