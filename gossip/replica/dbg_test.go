package replica

import (
	"fmt"
	"testing"

	"github.com/mxshield/mxshield/agent/block"
)

func TestDbg(t *testing.T) {
	dbg = func(h *history, from, to string, msg []byte) {
		if h.now.Sub(epoch0).Seconds() < 2.1 || h.now.Sub(epoch0).Seconds() > 60 {
			return
		}
		kind, r, err := open(msg)
		if err != nil {
			return
		}
		if kind == kindReply {
			id, origin, epoch, _, _, complete := r.uvarint(), r.name(), r.u64(), r.clock(), r.spans(), r.spans()
			list, _ := r.run(origin, epoch)
			s := ""
			for _, e := range list {
				s += fmt.Sprint(e.Seq, " ")
			}
			if origin == "mx5" {
				h.note("   reply %s->%s id %d %s/%x complete %v: %s", from, to, id, origin, epoch, complete, s)
			}
		}
		if kind == kindPull {
			id, origin, epoch, _, asked := r.uvarint(), r.name(), r.u64(), r.uvarint(), r.spans()
			if origin == "mx5" {
				h.note("   pull %s->%s id %d %s/%x %v", from, to, id, origin, epoch, asked)
			}
		}
	}
	h := simulate(3117, block.NoFault)
	for _, l := range h.trace {
		fmt.Println(l)
	}
	for _, x := range h.hosts {
		for _, l := range x.node.sorted() {
			fmt.Printf("%s %s/%x know %v skip %v latest %d\n", x.name, l.origin, l.epoch, l.know, l.skip, l.latest)
		}
	}
}
