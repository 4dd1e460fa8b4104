package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// SampleEvery is of how many dropped packets one becomes a [Sample], on average.
const SampleEvery = 1 << 10

// Sample is one dropped packet, which stands for [SampleEvery].
type Sample struct {
	Time      time.Time
	Source    netip.Addr
	Port      uint16 // destination; 0 if it was out of reach
	Reason    Reason
	Interface int // index
}

const (
	sampleSize  = 40 // struct drop_event
	samplesEach = 250 * time.Millisecond
)

// Samples calls f with samples of dropped packets, a quarter of a second after the drop at most, until ctx ends. Packets
// never wait for f; while it does not return they gather in a ring, and what finds no room is counted by
// [Shield.SamplesLost]. One call at a time.
func (s *Shield) Samples(ctx context.Context, f func(Sample)) error {
	rd, done, err := s.openRing(ctx, shieldMapSamples)
	if err != nil {
		return err
	}
	defer done()
	tick := time.NewTicker(samplesEach)
	defer tick.Stop()
	for {
		if err := readSamples(ctx, rd, f); err != nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// readSamples empties the ring.
func readSamples(ctx context.Context, rd *ringbuf.Reader, f func(Sample)) error {
	var mono unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono); err != nil {
		return fmt.Errorf("read samples: %w", err)
	}
	wall := time.Now()
	rd.SetDeadline(wall) // what is there, and no waiting
	var rec ringbuf.Record
	for {
		err := rd.ReadInto(&rec)
		switch {
		case ctx.Err() != nil, errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return fmt.Errorf("read samples: %w", err)
		case len(rec.RawSample) < sampleSize:
			return fmt.Errorf("read samples: %d bytes, want %d", len(rec.RawSample), sampleSize)
		}
		b := rec.RawSample
		f(Sample{
			Time:      wall.Add(time.Duration(int64(binary.NativeEndian.Uint64(b)) - mono.Nano())),
			Source:    addrOf(b[8:], b[34] != 0),
			Reason:    Reason(binary.NativeEndian.Uint32(b[24:])),
			Interface: int(binary.NativeEndian.Uint32(b[28:])),
			Port:      binary.BigEndian.Uint16(b[32:]),
		})
	}
}

// SamplesLost is how many samples found no room, since the shield was opened.
func (s *Shield) SamplesLost() (n uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, os.ErrClosed
	}
	if err := s.gen.maps[shieldMapSamplesLost].Lookup(uint32(0), &n); err != nil {
		return 0, fmt.Errorf("read samples_lost: %w", err)
	}
	return n, nil
}
