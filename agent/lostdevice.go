// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/datapath/netdev"
)

// deviceEvery is how often the agent's own devices are looked at although nothing said
// that one changed, and tried again where one could not be put back.
const deviceEvery = 5 * time.Second

// keepDevices calls put when something becomes of the devices of those names, and on a
// timer, until the context ends. changed is false when nothing was told since.
func keepDevices(ctx context.Context, log *slog.Logger, put func(changed bool), names ...string) error {
	tick := time.NewTicker(deviceEvery)
	defer tick.Stop()
	var mute string // what was said of watching last
	told := watchDevices(ctx, log, &mute, names)
	for {
		changed := true
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-told:
			if !ok {
				told = nil // too much at once; until the next tick
			}
		case <-tick.C:
			changed = told == nil
			if told == nil {
				told = watchDevices(ctx, log, &mute, names)
			}
		}
		put(changed)
	}
}

// watchDevices says why it cannot watch unless that is what it said last.
func watchDevices(ctx context.Context, log *slog.Logger, last *string, names []string) <-chan struct{} {
	changed, err := netdev.WatchDevices(ctx, names...)
	if err == nil {
		*last = ""
	} else if *last != err.Error() {
		*last = err.Error()
		log.Warn("devices are looked at on a timer only", "devices", strings.Join(names, ", "), "error", err, "every", deviceEvery)
	}
	return changed
}

// lostDevice is why a device of the agent's is not there.
type lostDevice struct {
	mu  sync.Mutex
	why error // nil: it is there
}

func (l *lostDevice) is() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.why != nil
}

// note remembers why the device is not there, nil when it is, and tells when that
// changes.
func (l *lostDevice) note(device string, err error, log *slog.Logger) {
	l.mu.Lock()
	was := l.why
	l.why = err
	l.mu.Unlock()
	switch {
	case err != nil && (was == nil || err.Error() != was.Error()):
		log.Error("a device of the mesh cannot be put back, trying again", "device", device, "error", err)
	case err == nil && was != nil:
		log.Info("a device of the mesh is there again", "device", device)
	}
}

// problems says that the device is not there, what that means, and what else than to
// wait can be done.
func (l *lostDevice) problems(device, means, fix string) []*hawserv1.Problem {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.why == nil {
		return nil
	}
	return []*hawserv1.Problem{{
		Object: "device " + device, Problem: l.why.Error() + "; " + means,
		Fix: "it is tried again every " + deviceEvery.String() + fix,
	}}
}
