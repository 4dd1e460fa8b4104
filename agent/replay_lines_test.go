package main

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
)

// dribble gives its bytes in pieces of any size, and then err.
type dribble struct {
	b   []byte
	r   *rand.Rand
	max int
	err error
}

func (d *dribble) Read(p []byte) (int, error) {
	n := copy(p[:min(len(p), d.r.IntN(d.max)+1)], d.b)
	if d.b = d.b[n:]; len(d.b) == 0 && (n == 0 || d.r.IntN(2) == 0) {
		return n, d.err
	}
	return n, nil
}

// TestLines: whatever the pieces in which a stream comes, and however long its lines are, they are those between its newlines.
func TestLines(t *testing.T) {
	broken := errors.New("broken")
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		var text []byte
		lengths := []int{0, 1, 100, maxReplayLine, maxReplayLine + 1, lineBlock - 1, lineBlock, lineBlock + 1, 2*lineBlock + 7}
		for range r.IntN(40) {
			n := r.IntN(200)
			if r.IntN(8) == 0 {
				n = max(0, lengths[r.IntN(len(lengths))]+r.IntN(3)-1)
			}
			line := bytes.Repeat([]byte{byte('a' + r.IntN(26))}, n)
			text = append(append(text, line...), []string{"\n", "\r\n", "\r\r\n"}[r.IntN(3)]...)
		}
		if r.IntN(2) == 0 {
			text = append(text, "a last line\r"...)
		}
		var want [][]byte
		for line := range bytes.Lines(text) {
			line = bytes.TrimSuffix(line, []byte("\n"))
			if len(line) <= lineBlock { // of a longer one the end is not there
				line = bytes.TrimSuffix(line, []byte("\r"))
			}
			want = append(want, line[:min(len(line), maxReplayLine)])
		}
		end := []error{io.EOF, broken}[seed%2]
		l := newLines(&dribble{text, r, []int{1, 100, 1 << 20}[r.IntN(3)] * (1 + len(text)/2000), end})
		for i := 0; ; i++ {
			line, err := l.next()
			if err != nil {
				if _, again := l.next(); err != end || again != end || i != len(want) || line != nil {
					t.Errorf("seed %d: %d lines of %d, then %v and %v", seed, i, len(want), err, again)
				}
				break
			}
			if i >= len(want) || !bytes.Equal(line, want[i]) {
				t.Fatalf("seed %d, line %d: %d bytes, %.20q", seed, i, len(line), line)
			}
		}
		<-l.done
	}
}

// TestLinesClosed: who is through with a stream before its end leaves nothing behind.
func TestLinesClosed(t *testing.T) {
	for read := range 3 {
		l := newLines(&dribble{bytes.Repeat([]byte("line\n"), 1<<20), rand.New(rand.NewPCG(1, 1)), 1 << 20, io.EOF})
		for range read {
			if line, err := l.next(); err != nil || string(line) != "line" {
				t.Fatalf("%q, %v", line, err)
			}
		}
		l.close()
		<-l.done
	}
}
