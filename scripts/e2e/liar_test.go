//go:build linux

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mxshield/mxshield/agent/block"
	"github.com/mxshield/mxshield/gossip"
	"github.com/mxshield/mxshield/gossip/replica"
)

// liarEnv makes this program a liar instead of tests.
const liarEnv = "MXSHIELD_TEST_LIAR"

const zero = syscall.Signal(0) // asks whether a process is there

// liar is a member that holds the key, keeps to the protocol, and blocks whom it likes. It does what it reads: flood.
type liar struct {
	Name, Bind, Peer, KeyFile string
	Others                    int // to wait for
	Flood                     int
	Hosts                     []netip.Addr // blocked among the first
}

func (l *liar) String() string {
	b, _ := json.Marshal(l)
	return string(b)
}

// bogus is the i-th address that the liar makes up. The first can be tried: they are of lab.Attack4, beyond those of next.
func bogus(i int) netip.Addr {
	if i < 200 {
		return netip.AddrFrom4([4]byte{198, 18, 250, byte(i + 1)})
	}
	return netip.AddrFrom4([4]byte{102, byte(i >> 16), byte(i >> 8), byte(i)})
}

// door leads to the others, once there is one.
type door struct {
	to atomic.Pointer[gossip.Cluster]
}

func (d *door) Peers() []string {
	if c := d.to.Load(); c != nil {
		return c.Peers()
	}
	return nil
}
func (d *door) Send(peer string, msg []byte) bool {
	c := d.to.Load()
	return c != nil && c.Send(peer, msg)
}
func (d *door) Stream(peer string, msg []byte) bool {
	c := d.to.Load()
	return c != nil && c.Stream(peer, msg)
}
func (d *door) WireVersion(peer string) uint32 { return d.to.Load().WireVersion(peer) }
func (d *door) Behind() time.Duration          { return 0 }

func runLiar(config string) error {
	var l liar
	if err := json.Unmarshal([]byte(config), &l); err != nil {
		return err
	}
	var net door
	table := block.New(block.Options{Origin: l.Name})
	node, err := replica.New(replica.Options{Node: l.Name, Clock: time.Now, Rand: rand.New(rand.NewPCG(1, 2)), Net: &net, Table: table})
	if err != nil {
		return err
	}
	g, err := gossip.Open(gossip.Options{
		Name: l.Name, Bind: l.Bind, KeyFile: l.KeyFile, Peers: []string{l.Peer}, Version: "lies",
		Wire: gossip.Wire{Min: replica.WireMin, Max: replica.WireVersion}, Handler: node.Receive, Digest: node.Digest, Merge: node.Receive,
	})
	if err != nil {
		return err
	}
	defer g.Close()
	net.to.Store(g)
	for len(g.Peers()) < l.Others {
		time.Sleep(10 * time.Millisecond)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		for ctx.Err() == nil {
			node.Tick(time.Now())
			time.Sleep(50 * time.Millisecond)
		}
	}()
	fmt.Println("met")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		for i := range l.Flood {
			list := []netip.Addr{bogus(i)}
			if i < len(l.Hosts) {
				list = append(list, l.Hosts[i])
			}
			for _, a := range list {
				now := time.Now()
				e := block.Entry{Prefix: netip.PrefixFrom(a, a.BitLen()), Kind: block.Block, Cause: block.Dictionary, Scope: block.ScopeMX, Until: now.Add(72 * time.Hour)}
				if _, err := table.Apply(e, now); err != nil {
					return err
				}
			}
		}
		fmt.Println("flooded")
	}
	return in.Err()
}
