package main

import (
	"bufio"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/mxshield/mxshield/agent/internal/config"
	"github.com/mxshield/mxshield/scripts/loggen/traffic"
)

// BenchmarkReplay is all of replay but the start of the process, on a made-up day of a mail host: of-scanner is how many
// times as much CPU time it takes, of all threads, as a bare bufio.Scanner over the same file in the same run.
func BenchmarkReplay(b *testing.B) {
	spent := func() time.Duration { return cpuTime(b, unix.CLOCK_PROCESS_CPUTIME_ID) }
	l, err := traffic.New(traffic.Options{Seed: 1, Lines: 200_000})
	if err != nil {
		b.Fatal(err)
	}
	path := filepath.Join(b.TempDir(), "mail.log")
	if err := os.WriteFile(path, []byte(strings.Join(l.Lines, "\n")+"\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	lines := float64(len(l.Lines))
	var ours, bare time.Duration
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		began := spent()
		r, err := newReplay(config.Default(), replayOptions{files: []string{path}, json: true}, nil, io.Discard, io.Discard)
		if err != nil {
			b.Fatal(err)
		}
		if err := r.run(); err != nil {
			b.Fatal(err)
		}
		ours += spent() - began
		b.StopTimer()
		if len(r.blocks) == 0 {
			b.Fatal("no block")
		}
		f, err := os.Open(path)
		if err != nil {
			b.Fatal(err)
		}
		began = spent()
		for in := bufio.NewScanner(f); in.Scan(); {
		}
		bare += spent() - began
		f.Close()
		b.StartTimer()
	}
	b.ReportMetric(float64(b.N)*lines/ours.Seconds(), "lines/CPU-s")
	b.ReportMetric(float64(b.N)*lines/b.Elapsed().Seconds(), "lines/s")
	b.ReportMetric(float64(ours)/float64(bare), "of-scanner")
}
