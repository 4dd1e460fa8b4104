package main

import (
	"context"
	"time"

	"github.com/mxshield/mxshield/agent/control"
	"github.com/mxshield/mxshield/agent/internal/config"
	"github.com/mxshield/mxshield/agent/internal/talkers"
	"github.com/mxshield/mxshield/bpf"
)

// maxTalkers is how many sources of dropped packets are told apart at a time.
const maxTalkers = 1024

// watchDrops reads samples of dropped packets for top. Without them all the rest goes on.
func (d *daemon) watchDrops(ctx context.Context) {
	err := d.shield.Samples(ctx, func(s bpf.Sample) {
		d.talkersMu.Lock()
		defer d.talkersMu.Unlock()
		if d.talkers == nil {
			d.talkers = talkers.New(maxTalkers)
		}
		d.talkers.Add(s.Source, s.Reason.String(), s.Port, s.Time)
	})
	if err != nil {
		d.warn("samples", "dropped packets are not sampled any more, and top shows none", err)
	}
}

// Top answers top.
func (d *daemon) Top(limit int) (control.Top, error) {
	now := time.Now()
	t := control.Top{Now: now.UTC(), SampleEvery: bpf.SampleEvery, Window: talkers.HalfLife.String(), Reasons: map[string]float64{}, Talkers: []control.Talker{}}
	if d.shield == nil {
		return t, nil // a dry run drops nothing
	}
	var err error
	if t.Lost, err = d.shield.SamplesLost(); err != nil {
		return t, err
	}
	d.talkersMu.Lock()
	var list []talkers.Talker
	if d.talkers != nil {
		list, t.Reasons = d.talkers.Top(limit, now)
	}
	d.talkersMu.Unlock()
	for r := range t.Reasons {
		t.Reasons[r] *= bpf.SampleEvery
	}
	for _, k := range list {
		row := control.Talker{Source: k.Source, Rate: k.Rate * bpf.SampleEvery, Error: k.Error * bpf.SampleEvery, Reasons: k.Reasons, Ports: k.Ports, Last: k.Last.UTC()}
		for r := range row.Reasons {
			row.Reasons[r] *= bpf.SampleEvery
		}
		if by := d.table.Decide(k.Source, now).By; by != nil {
			row.Block, row.Cause, row.Drops = by.Prefix, by.Cause.String(), d.drops(by.Prefix)
		}
		t.Talkers = append(t.Talkers, row)
	}
	return t, nil
}

// limits is what status says of them; nil if there are none.
func limits(cfg *config.Config) *control.Limits {
	l := cfg.Limits
	if l == (config.Limits{}) || cfg.DryRun {
		return nil
	}
	return &control.Limits{
		SYNPerSource: l.SYNPerSource, SourceBurst: l.SYNPerSource * bpf.SourceBurst,
		SYNTotal: l.SYNTotal, TotalBurst: l.SYNTotal * bpf.TotalBurst,
	}
}
