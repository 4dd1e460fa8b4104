package tail

import (
	"context"
	"sync"
	"time"
)

// Pace keeps files in step while what was there before is read, so that what two logs of a host tell of one thing comes
// together: by the stamps of the lines no file is handed over further than about twice paceSlack ahead of another. A
// file takes part until it came to its end for the first time, or could not be read.
type Pace struct {
	stamp func(line []byte) (time.Time, bool)

	mu    sync.Mutex
	at    map[string]time.Time // how far each file is, by ID; zero: it has not begun
	moved chan struct{}        // closed when one got on
}

// paceSlack is also how long a time the lines of a batch may stretch over.
const paceSlack = 30 * time.Second

// NewPace returns a Pace without files: each NewFile with it in its options is one more, and must run. stamp tells when a line
// was written; it is called by one goroutine at a time.
func NewPace(stamp func(line []byte) (time.Time, bool)) *Pace {
	return &Pace{stamp: stamp, at: map[string]time.Time{}, moved: make(chan struct{})}
}

func (p *Pace) join(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.at[id] = time.Time{}
}

func (p *Pace) leave(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.at[id]; ok {
		delete(p.at, id)
		p.movedLocked()
	}
}

func (p *Pace) movedLocked() {
	close(p.moved)
	p.moved = make(chan struct{})
}

// when returns the stamp of a line; false if there is none, or nobody to keep in step with.
func (p *Pace) when(line []byte) (time.Time, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.at) < 2 {
		return time.Time{}, false
	}
	return p.stamp(line)
}

// wait returns when the other files are near enough to t for the lines from there on to be handed over.
func (p *Pace) wait(ctx context.Context, id string, t time.Time) error {
	for {
		p.mu.Lock()
		if t.After(p.at[id]) {
			p.at[id] = t
			p.movedLocked()
		}
		behind := false
		for other, at := range p.at {
			behind = behind || other != id && t.Sub(at) > paceSlack
		}
		moved := p.moved
		p.mu.Unlock()
		if !behind {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
