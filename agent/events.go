// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"time"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/observe"
)

// watch has the programs tell what somebody listens to, and nothing else: that
// costs the packets time. Drops are always told.
func (a *Agent) watch() {
	a.watching.Lock()
	defer a.watching.Unlock()
	var w maps.Watch
	if a.hub.Wanted(observe.TypeName(datapath.EventVerdict)) {
		w.Verdicts = 1
	}
	if a.hub.Wanted(observe.TypeName(datapath.EventTrace)) {
		w.Traces = 1
	}
	if err := a.dp.Maps().Watched.Put(uint32(0), w); err != nil {
		a.log.Error("choose the events that are told", "error", err)
	}
}

func (a *Agent) handleEvent(e datapath.Event) {
	if e.Type == datapath.EventDrop && e.Reason == maps.DropIdentityUnknown {
		a.unknown.seen(e)
	}
	name := observe.TypeName(e.Type)
	if a.hub.Wanted(name) {
		a.hub.Publish(observe.Describe(e, time.Now(), a.cfg.Cluster, a.cfg.Node, a.view))
	}
}
