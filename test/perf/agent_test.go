// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/datapath/maps"
)

const (
	wideClusters = 250
	wideRate     = 300 // changes a second
	wideSeconds  = 20
	mapEvery     = 10 // one of so many changes is followed into the map
)

func keyOf(prefix string) maps.IPKey {
	p, err := netip.ParsePrefix(prefix)
	if err != nil {
		return maps.IPKey{} // which no record has
	}
	return maps.IPKey{Addr: maps.AddrFrom(p.Addr())}
}

// TestPerfFederationAgent measures when a remote write is in the kernel's map of
// a real agent.
func TestPerfFederationAgent(t *testing.T) {
	if !inside(t) {
		return
	}
	r := newReport(t, "federation-agent", aboutFederation+"; a real agent (default settings, full maps) that knows a large remote cluster; latency is from the time in the record until the agent's pinned map has it, looked at every 0.5 ms, one of ten changes")
	for range min(flags.rounds, 3) {
		t.Run("generator", func(t *testing.T) {
			c := startCluster(t, nearID, onTmpfs, hostOf(near()), "")
			worlds := remotes(1, bigWorld("", 0))
			g := c.syncWith(t, worlds)
			n := startNode(t, c)
			n.knows(t, worlds)
			cpu := n.group.seconds()
			l := n.watchMap(t, c, mapEvery)
			g.do(t, order{Op: "change", Rate: steadyRate, Millis: steadySeconds * 1000})
			addLag(r, "1000 writes/s, generator → agent's map", "", "< 30", l.end(t, steadyRate*steadySeconds))
			r.append("1000 writes/s: CPU of the agent", "% of a CPU", "", 100*(n.group.seconds()-cpu)/steadySeconds)
			r.append("memory of the agent, 1 large cluster", "MiB", "", n.group.resident())
		})
		t.Run("real source", func(t *testing.T) {
			c := startCluster(t, nearID, onTmpfs, hostOf(near()), "")
			o := startCluster(t, farID, onTmpfs, secondHost(), "")
			fill(t, o.kv, o.world, 2)
			c.peerWith(t, o)
			n := startNode(t, c)
			n.knows(t, []world{o.world})
			l := n.watchMap(t, c, mapEvery)
			writeSteadily(t, o, steadyRate, steadySeconds)
			addLag(r, "1000 writes/s, real source → agent's map", "", "< 30", l.end(t, steadyRate*steadySeconds))
		})
	}
	r.finish(t)
}

// TestPerfFederationWide measures a mesh of very many clusters.
func TestPerfFederationWide(t *testing.T) {
	if !inside(t) {
		return
	}
	shape := world{Nodes: 10, Identities: 100, IPs: 1000, Services: 10, Backends: 10}
	r := newReport(t, "federation-wide", fmt.Sprintf("%s; %d clusters of %d nodes, %d endpoints, %d identities, %d services each, and a real agent (default settings, full maps)",
		aboutFederation, wideClusters, shape.Nodes, shape.IPs, shape.Identities, shape.Services))
	c := startCluster(t, nearID, onTmpfs, hostOf(near()), "")
	worlds := remotes(wideClusters, shape)
	g := startGenerator(t)
	c.join(t, g, worlds)
	done := c.synced(t, worlds)
	c.server.sample()
	start, cpu := time.Now(), c.server.seconds()
	g.do(t, order{Op: "connect"})
	at, ok := <-done
	if !ok {
		t.FailNow()
	}
	r.append("first sync of all", "s", "", at.Sub(start).Seconds())
	r.append("first sync of all, rate", "keys/s", "", float64(wideClusters*shape.keys())/at.Sub(start).Seconds())
	r.append("first sync of all, CPU of the API server", "s", "", c.server.seconds()-cpu)
	r.append("first sync of all, peak memory of the API server", "MiB", "", c.server.settle())

	start = time.Now()
	n := startNode(t, c)
	n.group.sample()
	n.knows(t, worlds)
	r.append("start of the agent until the map has all addresses", "s", "", time.Since(start).Seconds())
	r.append("the same, CPU of the agent", "s", "", n.group.seconds())
	l := n.watchMap(t, c, 1)
	cpu, scpu := n.group.seconds(), c.server.seconds()
	g.do(t, order{Op: "change", Rate: wideRate, Millis: wideSeconds * 1000})
	ms := l.end(t, wideRate*wideSeconds)
	r.addOps("300 changes/s, generator → agent's map", "ms", "p99 < 1000", ms)
	r.append("300 changes/s: CPU of the agent", "% of a CPU", "", 100*(n.group.seconds()-cpu)/wideSeconds)
	r.append("300 changes/s: CPU of the API server", "% of a CPU", "", 100*(c.server.seconds()-scpu)/wideSeconds)
	r.append("memory of the agent at the end", "MiB", "< 400", n.group.resident())
	r.append("memory of the agent, peak", "MiB", "< 400", n.group.settle())
	r.append("memory of the API server at the end", "MiB", "", c.server.resident())
	r.finish(t)
}
