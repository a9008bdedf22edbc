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

// lagSample is how long one change took, by two clocks.
type lagSample struct {
	at   time.Time
	raw  time.Duration // by our clock at the end and the far one at the beginning
	by   rttSample     // what was known of their difference then,
	told bool          // if anything was
}

// rttSample is the clocks' difference as an answered heartbeat tells it, right to
// half of its round trip.
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
	best, _ := l.best()
	return best.offset
}

// best is the quickest of the last heartbeats, if there was any.
func (l *lagMeter) best() (best rttSample, known bool) {
	if len(l.rtts) == 0 {
		return rttSample{}, false
	}
	return slices.MinFunc(l.rtts, func(a, b rttSample) int { return int(a.rtt - b.rtt) }), true
}

// known reports whether the offset is.
func (l *lagMeter) known() bool { return len(l.rtts) > 0 }

// age is how long ago something happened that the far clock dates remote (Unix
// ns), never negative.
func (l *lagMeter) age(now time.Time, remote int64) time.Duration {
	return max(0, now.Add(l.offset()).Sub(time.Unix(0, remote)))
}

func (l *lagMeter) applied(now time.Time, remote int64) {
	s := lagSample{at: now, raw: now.Sub(time.Unix(0, remote))}
	s.by, s.told = l.best()
	if len(l.samples) < lagSamples {
		l.samples = append(l.samples, s)
		return
	}
	l.samples[l.next] = s
	l.next = (l.next + 1) % lagSamples
}

// lag is that of a sample, never negative. The first heartbeat of a stream may be
// slow, or not answered yet: then what is known now counts for what was applied
// before, unless one of the clocks was set meanwhile.
func (l *lagMeter) lag(s lagSample) time.Duration {
	by := s.by
	now, known := l.best()
	if known && (!s.told || (now.offset-by.offset).Abs() <= (now.rtt+by.rtt)/2) {
		by = now
	}
	return max(0, s.raw+by.offset)
}

// quantiles are p50 and p99 of the window; 0 without samples.
func (l *lagMeter) quantiles(now time.Time) (p50, p99 time.Duration) {
	var in []time.Duration
	for _, s := range l.samples {
		if now.Sub(s.at) <= lagWindow {
			in = append(in, l.lag(s))
		}
	}
	if len(in) == 0 {
		return 0, 0
	}
	slices.Sort(in)
	return in[len(in)/2], in[min(len(in)-1, len(in)*99/100)]
}
