// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"github.com/hawser-mesh/hawser/datapath/maps"
)

// GCConfig says how long silent flows are kept. Zero fields mean the defaults.
type GCConfig struct {
	Interval time.Duration // between passes, 10 s
	TCP      time.Duration // established, 8,000 s
	HalfOpen time.Duration // unanswered, or TCP whose answer is not confirmed, 60 s
	Closing  time.Duration // closed or reset, 10 s
	FinSent  time.Duration // to a service, finished by the client, 120 s
	Other    time.Duration // UDP, ICMP and others, answered, 60 s
}

func (c GCConfig) withDefaults() GCConfig {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&c.Interval, 10*time.Second)
	set(&c.TCP, 8000*time.Second)
	set(&c.HalfOpen, 60*time.Second)
	set(&c.Closing, 10*time.Second)
	set(&c.FinSent, 120*time.Second)
	set(&c.Other, 60*time.Second)
	return c
}

const (
	// From this fill on the timeouts shrink, the more the fuller.
	pressureFill   = 0.9
	pressureShrink = 8
	// refusedFor is how long it is told that new flows found no room, in seconds.
	refusedFor = 60
	// hzSample is how long the kernel's clock is watched to learn its rate.
	hzSample = time.Second
)

// RunGC deletes expired flows until the context ends, and returns nil then.
func (d *Datapath) RunGC(ctx context.Context, cfg GCConfig) error {
	cfg = cfg.withDefaults()
	hz, err := d.tickRate(ctx)
	if err != nil || ctx.Err() != nil {
		return err
	}
	tick := time.NewTicker(cfg.Interval)
	defer tick.Stop()
	shrink := uint32(1)
	for {
		if shrink, err = d.collect(cfg, hz, shrink); err != nil {
			d.log.Error("collecting expired flows", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// collect is one pass. It returns by how much timeouts shrink in the next.
func (d *Datapath) collect(cfg GCConfig, hz, shrink uint32) (uint32, error) {
	now, err := d.jiffies()
	if err != nil {
		return shrink, err
	}
	ticks := func(t time.Duration) uint32 { return uint32(t.Seconds()*float64(hz)) / shrink }
	timeouts := maps.Timeouts{
		TCP: ticks(cfg.TCP), HalfOpen: ticks(cfg.HalfOpen),
		Closing: ticks(cfg.Closing), FinSent: ticks(cfg.FinSent), Other: ticks(cfg.Other),
	}
	_, _, err1 := maps.CollectConntrack[maps.Tuple4](d.maps.Ct4Open, timeouts.OfHalfOpen(), now)
	_, _, err2 := maps.CollectConntrack[maps.Tuple6](d.maps.Ct6Open, timeouts.OfHalfOpen(), now)
	seen4, gone4, err3 := maps.CollectConntrack[maps.Tuple4](d.maps.Ct4, timeouts, now)
	seen6, gone6, err4 := maps.CollectConntrack[maps.Tuple6](d.maps.Ct6, timeouts, now)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return shrink, err
	}
	if err := d.noteFlows(now, hz, seen4-gone4, seen6-gone6); err != nil {
		return shrink, err
	}
	if err := d.collectPorts(timeouts.Closing, now); err != nil {
		return shrink, err
	}
	fill := func(flows int, m *ebpf.Map) float64 { return float64(flows) / float64(m.MaxEntries()) }
	if max(fill(seen4-gone4, d.maps.Ct4), fill(seen6-gone6, d.maps.Ct6)) < pressureFill {
		return 1, nil
	}
	if shrink == 1 {
		d.log.Warn("conntrack is nearly full, timeouts shrink", "flows", seen4-gone4, "room", d.maps.Ct4.MaxEntries(),
			"flows6", seen6-gone6, "room6", d.maps.Ct6.MaxEntries())
	}
	return min(shrink*2, pressureShrink), nil
}

// collectPorts deletes masquerade ports of flows that are gone.
func (d *Datapath) collectPorts(grace, now uint32) error {
	m := d.maps
	_, _, err1 := maps.CollectMasquerade[maps.SNATKey, maps.SNATEntry](m.Snat4Open, m.Ct4, m.Ct4Open, grace, now)
	_, _, err2 := maps.CollectMasquerade[maps.SNATKey, maps.SNATEntry](m.Snat4, m.Ct4, m.Ct4Open, grace, now)
	_, _, err3 := maps.CollectMasquerade[maps.SNAT6Key, maps.SNAT6Entry](m.Snat6Open, m.Ct6, m.Ct6Open, grace, now)
	_, _, err4 := maps.CollectMasquerade[maps.SNAT6Key, maps.SNAT6Entry](m.Snat6, m.Ct6, m.Ct6Open, grace, now)
	return errors.Join(err1, err2, err3, err4)
}

// jiffies is the low half of the kernel's clock, as entries have it.
func (d *Datapath) jiffies() (uint32, error) {
	ret, _, err := d.progs.Clock.Test(make([]byte, 14))
	if err != nil {
		return 0, fmt.Errorf("read the kernel's clock: %w", err)
	}
	return ret, nil
}

// tickRate measures the kernel's HZ, which it does not tell.
func (d *Datapath) tickRate(ctx context.Context) (uint32, error) {
	first, err := d.jiffies()
	if err != nil {
		return 0, err
	}
	start := time.Now()
	select {
	case <-ctx.Done():
		return 0, nil
	case <-time.After(hzSample):
	}
	last, err := d.jiffies()
	if err != nil {
		return 0, err
	}
	rate := float64(last-first) / time.Since(start).Seconds()
	best := uint32(100)
	for _, hz := range []uint32{250, 300, 1000} {
		if diff(rate, hz) < diff(rate, best) {
			best = hz
		}
	}
	return best, nil
}

func diff(rate float64, hz uint32) float64 {
	d := rate - float64(hz)
	return max(d, -d)
}
