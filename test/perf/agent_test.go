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
		for _, store := range []storage{onTmpfs, onDisk} {
			t.Run("generator, "+string(store), func(t *testing.T) { agentGenerated(t, r, store) })
			t.Run("real source, "+string(store), func(t *testing.T) { agentReal(t, r, store) })
		}
	}
	r.finish(t)
}

func agentGenerated(t *testing.T, r *report, store storage) {
	c := startCluster(t, nearID, store, hostOf(near()), "")
	worlds := remotes(1, bigWorld("", 0))
	g := c.syncWith(t, worlds)
	n := startNode(t, c)
	n.knows(t, worlds)
	cpu := n.group.seconds()
	l := n.watchMap(t, c, mapEvery)
	g.do(t, order{Op: "change", Rate: steadyRate, Millis: steadySeconds * 1000})
	addLag(r, "1000 writes/s, generator → agent's map, "+string(store), "", goalOf(store, "< 30"), l.end(t, steadyRate*steadySeconds))
	r.append("1000 writes/s: CPU of the agent, "+string(store), "% of a CPU", "", 100*(n.group.seconds()-cpu)/steadySeconds)
	r.append("memory of the agent, 1 large cluster, "+string(store), "MiB", "", n.group.resident())
}

func agentReal(t *testing.T, r *report, store storage) {
	c := startCluster(t, nearID, store, hostOf(near()), "")
	o := startCluster(t, farID, store, secondHost(), "")
	fill(t, o.kv, o.world, 2)
	c.peerWith(t, o)
	n := startNode(t, c)
	n.knows(t, []world{o.world})
	l := n.watchMap(t, c, mapEvery)
	writeSteadily(t, o, steadyRate, steadySeconds)
	addLag(r, "1000 writes/s, real source → agent's map, "+string(store), "", goalOf(store, "< 30"), l.end(t, steadyRate*steadySeconds))
}

// TestPerfFederationWide measures a mesh of very many clusters.
func TestPerfFederationWide(t *testing.T) {
	if !inside(t) {
		return
	}
	shape := world{Nodes: 10, Identities: 100, IPs: 1000, Services: 10, Backends: 10}
	r := newReport(t, "federation-wide", fmt.Sprintf("%s; %d clusters of %d nodes, %d endpoints, %d identities, %d services each, and a real agent (default settings, full maps)",
		aboutFederation, wideClusters, shape.Nodes, shape.IPs, shape.Identities, shape.Services))
	for _, store := range []storage{onTmpfs, onDisk} {
		for n := range min(flags.rounds, 3) {
			if n > 0 && store == onDisk {
				break // it takes a minute
			}
			t.Run(string(store), func(t *testing.T) { wide(t, r, shape, store) })
		}
	}
	r.finish(t)
}

func wide(t *testing.T, r *report, shape world, store storage) {
	add := func(name, unit, goal string, v float64) {
		r.append(name+", "+string(store), unit, goalOf(store, goal), v)
	}
	c := startCluster(t, nearID, store, hostOf(near()), "")
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
	add("first sync of all", "s", "", at.Sub(start).Seconds())
	add("first sync of all, rate", "keys/s", "", float64(wideClusters*shape.keys())/at.Sub(start).Seconds())
	add("first sync of all, CPU of the API server", "s", "", c.server.seconds()-cpu)
	add("first sync of all, peak memory of the API server", "MiB", "", c.server.settle())

	start = time.Now()
	n := startNode(t, c)
	n.group.sample()
	n.knows(t, worlds)
	add("start of the agent until the map has all addresses", "s", "", time.Since(start).Seconds())
	add("the same, CPU of the agent", "s", "", n.group.seconds())
	l := n.watchMap(t, c, 1)
	cpu, scpu := n.group.seconds(), c.server.seconds()
	g.do(t, order{Op: "change", Rate: wideRate, Millis: wideSeconds * 1000})
	ms := l.end(t, wideRate*wideSeconds)
	addLag(r, "300 changes/s, generator → agent's map, "+string(store), "", goalOf(store, "< 1000"), ms)
	add("300 changes/s: CPU of the agent", "% of a CPU", "", 100*(n.group.seconds()-cpu)/wideSeconds)
	add("300 changes/s: CPU of the API server", "% of a CPU", "", 100*(c.server.seconds()-scpu)/wideSeconds)
	add("memory of the agent at the end", "MiB", "< 400", n.group.resident())
	add("memory of the agent, peak", "MiB", "< 400", n.group.settle())
	add("memory of the API server at the end", "MiB", "", c.server.resident())
}
