// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"slices"
	"time"
)

const (
	lagSamples = 1024
	lagWindow  = 5 * time.Minute
	rttSamples = 16
)

// lagMeter keeps how long changes took from the far API server seeing them
// committed to being applied here, over a sliding window, with the difference of
// the two clocks taken out. Its owner locks it.
type lagMeter struct {
	samples []lagSample // a ring
	next    int
	rtts    []rttSample // a ring
	nextRTT int
}

type lagSample struct {
	at  time.Time
	lag time.Duration
}

type rttSample struct{ rtt, offset time.Duration }

// heartbeat learns from an answered heartbeat: ours was sent at echo, the far
// side kept it for held and answered at remote (its clock), and now it is now.
func (l *lagMeter) heartbeat(now, echo time.Time, held time.Duration, remote time.Time) {
	rtt := now.Sub(echo) - held
	if rtt < 0 {
		return
	}
	s := rttSample{rtt: rtt, offset: remote.Sub(now.Add(-rtt / 2))}
	if len(l.rtts) < rttSamples {
		l.rtts = append(l.rtts, s)
		return
	}
	l.rtts[l.nextRTT] = s
	l.nextRTT = (l.nextRTT + 1) % rttSamples
}

// offset is the far clock minus ours by the quickest of the last heartbeats; 0
// while unknown.
func (l *lagMeter) offset() time.Duration {
	if len(l.rtts) == 0 {
		return 0
	}
	return slices.MinFunc(l.rtts, func(a, b rttSample) int { return int(a.rtt - b.rtt) }).offset
}

// known reports whether the offset is.
func (l *lagMeter) known() bool { return len(l.rtts) > 0 }

// age is how long ago something happened that the far clock dates remote (Unix
// ns), never negative.
func (l *lagMeter) age(now time.Time, remote int64) time.Duration {
	return max(0, now.Add(l.offset()).Sub(time.Unix(0, remote)))
}

func (l *lagMeter) applied(now time.Time, remote int64) {
	s := lagSample{at: now, lag: l.age(now, remote)}
	if len(l.samples) < lagSamples {
		l.samples = append(l.samples, s)
		return
	}
	l.samples[l.next] = s
	l.next = (l.next + 1) % lagSamples
}

// quantiles are p50 and p99 of the window; 0 without samples.
func (l *lagMeter) quantiles(now time.Time) (p50, p99 time.Duration) {
	var in []time.Duration
	for _, s := range l.samples {
		if now.Sub(s.at) <= lagWindow {
			in = append(in, s.lag)
		}
	}
	if len(in) == 0 {
		return 0, 0
	}
	slices.Sort(in)
	return in[len(in)/2], in[min(len(in)-1, len(in)*99/100)]
}
