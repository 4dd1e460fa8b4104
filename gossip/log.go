package gossip

import (
	"bytes"
	"context"
	"log"
	"log/slog"
	"sync"
	"time"
)

// memberlist logs lines "[LEVEL] memberlist: text", some of them for every packet it does not like. They go to slog as
// one quoted value, shortened, and at most a few a minute; how many were left out stands in the next one that is not.
type lineWriter struct {
	log   *slog.Logger
	count *counters
	now   func() time.Time

	mu    sync.Mutex
	left  float64 // tokens
	at    time.Time
	quiet uint64
}

const (
	logBurst = 20
	logEvery = 3 * time.Second
	logMax   = 300
)

func newLineLogger(to *slog.Logger, count *counters) *log.Logger {
	return log.New(&lineWriter{log: to, count: count, now: time.Now, left: logBurst}, "", 0)
}

func (w *lineWriter) Write(line []byte) (int, error) {
	n := len(line)
	level := slog.LevelInfo
	text := bytes.TrimSpace(line)
	if end := bytes.IndexByte(text, ']'); len(text) > 0 && text[0] == '[' && end > 0 {
		switch string(text[1:end]) {
		case "DEBUG":
			level = slog.LevelDebug
		case "WARN":
			level = slog.LevelWarn
		case "ERR", "ERROR":
			level = slog.LevelWarn // its errors are the network's and the peers', none of them stops us
		}
		text = bytes.TrimSpace(text[end+1:])
	}
	text = bytes.TrimPrefix(text, []byte("memberlist: "))
	ctx := context.Background()
	if !w.log.Enabled(ctx, level) {
		return n, nil
	}
	quiet, ok := w.take()
	if !ok {
		w.count.logDropped.Add(1)
		return n, nil
	}
	args := []any{"text", string(text[:min(len(text), logMax)])}
	if quiet > 0 {
		args = append(args, "left_out", quiet)
	}
	w.log.Log(ctx, level, "memberlist", args...)
	return n, nil
}

func (w *lineWriter) take() (quiet uint64, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	if !w.at.IsZero() {
		w.left = min(logBurst, w.left+now.Sub(w.at).Seconds()/logEvery.Seconds())
	}
	w.at = now
	if w.left < 1 {
		w.quiet++
		return 0, false
	}
	w.left--
	quiet, w.quiet = w.quiet, 0
	return quiet, true
}
