package verdict

import (
	"bytes"
	"fmt"
	"runtime"
	"testing"

	"github.com/mxshield/mxshield/agent/internal/maillog"
)

func TestZZ2(t *testing.T) {
	runtime.LockOSThread()
	traps := new(maillog.Traps)
	traps.Add("honeypot@example.org")
	for _, m := range []struct {
		mta string
		log [][]byte
	}{{"postfix", busy(50000, 50000)}, {"exim", eximBusy(50000, 50000)}, {"dovecot", dovecotBusy(50000, 50000)}} {
		file := append(bytes.Join(m.log, []byte("\n")), '\n')
		buf := make([]byte, 64<<10)
		each := func(f func(l []byte)) {
			for off := 0; off < len(file); {
				n := copy(buf, file[off:])
				b := buf[:n]
				for {
					i := bytes.IndexByte(b, '\n')
					if i < 0 {
						break
					}
					f(b[:i])
					b = b[i+1:]
				}
				off += n - len(b)
			}
		}
		for _, batch := range []int{1, 16, 64, 128, 256, 512, 1024} {
			p, s := maillog.New(maillog.Options{Traps: traps, Recipients: true}), New(DefaultConfig())
			evs := make([]maillog.Event, batch)
			n := 0
			a := least(func() {
				each(func(l []byte) {
					if p.Parse(l, t0, &evs[n]) {
						if n++; n == batch {
							for i := range evs {
								s.Observe(&evs[i], t0)
							}
							n = 0
						}
					}
				})
			}, 50000)
			fmt.Printf("%s batch %d: %.1f\n", m.mta, batch, a)
		}
		fmt.Printf("lines alone %.1f\n", least(func() { each(func(l []byte) {}) }, 50000))
	}
}
