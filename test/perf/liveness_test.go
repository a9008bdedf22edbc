// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"sync"
	"testing"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/lab"
)

// look is how often a node is asked what it has found.
const look = 5 * time.Millisecond

// TestPerfLiveness measures how soon dead nodes and cut tunnels are found: from
// the fault to the moment when a node passes over the backends behind it.
func TestPerfLiveness(t *testing.T) {
	r := newReport(t, "liveness", "a lab of two clusters of two nodes: each value is one node's, asked every 5 ms; a round begins with restarted agents, so that no path is held back for the one before")
	l := startLab(t, lab.NewSpec(labName("l"), 2, 2), lab.Options{Demo: true})
	w := watchers{l: l, nodes: map[string]hawserv1.NodeClient{}}
	for _, c := range l.Clusters() {
		for _, n := range c.Members {
			w.nodes[n.Name] = hawserv1.NewNodeClient(onSocket(t, n.Socket))
		}
		if c.Name == "west" {
			w.west = hawserv1.NewMeshClient(onSocket(t, c.Socket))
		}
	}
	found := map[string][]float64{}
	for range flags.rounds {
		w.quiet(t)
		powerOff(t, &w, found)
		w.quiet(t)
		cutTunnel(t, &w, found)
		w.quiet(t)
		clusterOff(t, &w, found)
	}
	for _, row := range []struct{ name, goal string }{
		{"node powered off → passed over by a node of another cluster", "≤ 2 s"},
		{"node powered off → passed over by a node of its cluster", "≤ 2 s"},
		{"node powered off → dead in its cluster's keyspace", ""},
		{"whole cluster powered off → each of its nodes passed over by those of another", "≤ 3 s"},
		{"tunnel between clusters cut → passed over", "≤ 2 s"},
		{"tunnel healed → chosen again", ""},
	} {
		r.addOps(row.name, "s", row.goal, found[row.name])
	}
	r.finish(t)
}

type watchers struct {
	l     *lab.Lab
	nodes map[string]hawserv1.NodeClient
	west  hawserv1.MeshClient
}

// await is how long it takes from since until a node says so of another.
func (w *watchers) await(t *testing.T, since time.Time, from, of string, chosen bool) float64 {
	t.Helper()
	for time.Since(since) < within {
		r, err := w.nodes[from].ListPaths(t.Context(), &hawserv1.ListPathsRequest{})
		for _, p := range r.GetPaths() {
			if err == nil && p.GetNode() == of && p.GetChosen() == chosen && p.GetPath() != "unknown" && p.GetPath() != "" {
				return time.Since(since).Seconds()
			}
		}
		time.Sleep(look)
	}
	t.Errorf("%s never changed its mind about %s", from, of)
	return within.Seconds()
}

// quiet restarts all agents and waits until every node chooses every other.
func (w *watchers) quiet(t *testing.T) {
	t.Helper()
	for name := range w.nodes {
		if err := w.l.Restart(context.Background(), lab.AgentProgram, name); err != nil {
			t.Fatal(err)
		}
	}
	for from := range w.nodes {
		for of := range w.nodes {
			if from != of {
				w.await(t, time.Now(), from, of, true)
			}
		}
	}
	w.health(t, time.Now(), "alive")
}

// health waits for what west says of west-2.
func (w *watchers) health(t *testing.T, since time.Time, want string) float64 {
	t.Helper()
	for time.Since(since) < within {
		r, err := w.west.ListNodes(t.Context(), &hawserv1.ListNodesRequest{})
		for _, n := range r.GetNodes() {
			if err == nil && n.GetName() == "west-2" && n.GetHealth() == want {
				return time.Since(since).Seconds()
			}
		}
		time.Sleep(look)
	}
	t.Errorf("west-2 never was %s", want)
	return within.Seconds()
}

func powerOff(t *testing.T, w *watchers, found map[string][]float64) {
	t.Helper()
	start := time.Now()
	if err := w.l.PowerOff(t.Context(), "west-2"); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	note := func(name string, v float64) { mu.Lock(); defer mu.Unlock(); found[name] = append(found[name], v) }
	var wg sync.WaitGroup
	for _, from := range []string{"east-1", "east-2"} {
		wg.Go(func() {
			note("node powered off → passed over by a node of another cluster", w.await(t, start, from, "west-2", false))
		})
	}
	wg.Go(func() {
		note("node powered off → passed over by a node of its cluster", w.await(t, start, "west-1", "west-2", false))
	})
	wg.Go(func() { note("node powered off → dead in its cluster's keyspace", w.health(t, start, "dead")) })
	wg.Wait()
	if err := w.l.PowerOn(t.Context(), "west-2"); err != nil {
		t.Fatal(err)
	}
}

// clusterOff takes the power from west's nodes and its API server.
func clusterOff(t *testing.T, w *watchers, found map[string][]float64) {
	t.Helper()
	start := time.Now()
	if err := w.l.PowerOff(t.Context(), "west"); err != nil {
		t.Fatal(err)
	}
	const name = "whole cluster powered off → each of its nodes passed over by those of another"
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, from := range []string{"east-1", "east-2"} {
		for _, of := range []string{"west-1", "west-2"} {
			wg.Go(func() {
				v := w.await(t, start, from, of, false)
				mu.Lock()
				defer mu.Unlock()
				found[name] = append(found[name], v)
			})
		}
	}
	wg.Wait()
	if err := w.l.PowerOn(t.Context(), "west"); err != nil {
		t.Fatal(err)
	}
}

func cutTunnel(t *testing.T, w *watchers, found map[string][]float64) {
	t.Helper()
	both := func(name string, since time.Time, chosen bool) {
		var mu sync.Mutex
		var wg sync.WaitGroup
		for from, of := range map[string]string{"east-1": "west-1", "east-2": "west-2", "west-1": "east-1", "west-2": "east-2"} {
			wg.Go(func() {
				v := w.await(t, since, from, of, chosen)
				mu.Lock()
				defer mu.Unlock()
				found[name] = append(found[name], v)
			})
		}
		wg.Wait()
	}
	start := time.Now()
	if err := w.l.Cut(lab.TunnelNetwork, "east", "west"); err != nil {
		t.Fatal(err)
	}
	both("tunnel between clusters cut → passed over", start, false)
	start = time.Now()
	if err := w.l.Heal(lab.TunnelNetwork, "east", "west"); err != nil {
		t.Fatal(err)
	}
	both("tunnel healed → chosen again", start, true)
}
