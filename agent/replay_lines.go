package main

import (
	"bytes"
	"io"
)

const (
	// maxReplayLine bounds a line, in bytes; the rest of a longer one is skipped, as the live agent does.
	maxReplayLine = 64 << 10
	// lineBlock is how many bytes are read at a time, and lineBlocks how many such pieces there are: one is being filled while
	// the lines of another are parsed.
	lineBlock  = 8 * maxReplayLine
	lineBlocks = 2
)

// lines takes a stream apart into its lines. Reading (and unpacking) it and looking for the newlines is done by a goroutine of
// its own, since parsing alone keeps a core busy. It is for one goroutine at a time; close ends it.
type lines struct {
	free, full chan *linePiece
	quit, done chan struct{}
	piece      *linePiece // whose lines are being given out
	line       int        // the next of them
	start      int        // where it begins
	err        error      // behind the last line: io.EOF, or what went wrong
}

// A linePiece is whole lines.
type linePiece struct {
	buf  []byte
	from int     // where the first line begins
	ends []int32 // where the newlines are; the last line of a stream may lack it
	err  error   // there is no other piece
}

// newLines begins to read r. Nobody else may read it from now on.
func newLines(r io.Reader) *lines {
	l := &lines{free: make(chan *linePiece, lineBlocks), full: make(chan *linePiece, lineBlocks), quit: make(chan struct{}), done: make(chan struct{})}
	for range lineBlocks {
		l.free <- &linePiece{buf: make([]byte, lineBlock)}
	}
	go l.pump(r)
	return l
}

// next returns the next line without its newline and a carriage return in front of that, at most maxReplayLine bytes of it. It
// holds until the next call. Behind the last line there is an error, io.EOF if all went well.
func (l *lines) next() ([]byte, error) {
	for l.piece == nil || l.line == len(l.piece.ends) {
		if l.err != nil {
			return nil, l.err
		}
		if l.piece != nil {
			l.free <- l.piece
		}
		l.piece, l.line = <-l.full, 0
		l.start, l.err = l.piece.from, l.piece.err
	}
	end := int(l.piece.ends[l.line])
	line := l.piece.buf[l.start:end]
	l.start = end + 1
	l.line++
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
	}
	return line[:min(len(line), maxReplayLine)], nil
}

// close lets go of the stream. A read that is under way may still come to its end after that: done is closed then.
func (l *lines) close() { close(l.quit) }

func (l *lines) pump(r io.Reader) {
	defer close(l.done)
	var rest []byte // of the piece before: a line whose end is to come
	skip := false   // so is the end of a long line
	for {
		var p *linePiece
		select {
		case p = <-l.free:
		case <-l.quit:
			return
		}
		rest, skip = p.fill(r, rest, skip)
		select {
		case l.full <- p:
		case <-l.quit:
			return
		}
		if p.err != nil {
			return
		}
	}
}

// fill reads at least one line, unless nothing comes after it.
func (p *linePiece) fill(r io.Reader, rest []byte, skip bool) ([]byte, bool) {
	p.from, p.err = 0, nil
	ends := p.ends[:0] // p is written to once: see replay.batch
	have := copy(p.buf, rest)
	seen := have // there is no newline in it
	for len(ends) == 0 && p.err == nil {
		var n int
		n, p.err = r.Read(p.buf[have:])
		for have += n; ; {
			i := bytes.IndexByte(p.buf[seen:have], '\n')
			if i < 0 {
				seen = have
				break
			}
			if seen += i + 1; skip {
				skip, p.from = false, seen
			} else {
				ends = append(ends, int32(seen-1))
			}
		}
		switch {
		case skip:
			have, seen = 0, 0
		case len(ends) == 0 && p.from > 0: // room for the line behind the one that was skipped
			have = copy(p.buf, p.buf[p.from:have])
			p.from, seen = 0, have
		case len(ends) == 0 && have == len(p.buf): // a long line: its beginning is enough
			p.ends = append(ends, int32(have))
			return nil, true
		}
	}
	rest = p.buf[p.from:have]
	if n := len(ends); n > 0 {
		rest = p.buf[ends[n-1]+1 : have]
	}
	if p.err != nil && len(rest) > 0 {
		ends = append(ends, int32(have))
	}
	p.ends = ends
	return rest, skip
}
