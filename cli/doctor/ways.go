// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
)

// A place is a node of the mesh, CLUSTER/NODE.
type place struct{ cluster, node string }

func (p place) String() string { return p.cluster + "/" + p.node }

// way is a tunnel from a node to another as the first one's probes see it.
type way struct {
	from, to place
	addr     string
	port     uint32
	*hawserv1.NodePath
}

func (w way) down() bool { return w.GetPath() == "down" }

func (w way) narrow() bool {
	return !w.down() && w.GetMtu() > 0 && w.GetMtu() < w.GetFullMtu()
}

// fault is what can be wrong with ways.
type fault struct {
	check string
	is    func(way) bool
	// what says what is wrong with them, after "nobody's", "all", …
	node, pair, one func(ws []way) string
	next            func(ws []way) string
}

// Ways judges the tunnels between the nodes of all clusters. What one cause
// explains is one finding: a node that nobody reaches, two clusters with nothing
// between them, else each way.
func Ways(snapshots []Snapshot) []Finding {
	var ways []way
	for _, s := range snapshots {
		for _, n := range s.Nodes {
			for _, p := range n.Paths {
				if p.GetAddress() == "" { // it was forgotten a moment ago
					continue
				}
				if p.GetPath() != "" && p.GetPath() != "unknown" {
					ways = append(ways, way{place{s.Cluster, n.Name}, place{p.GetCluster(), p.GetNode()}, p.GetAddress(), n.Status.GetTunnelPort(), p})
				}
			}
		}
	}
	ways, out := admitted(ways, snapshots)
	asked := map[string]bool{}
	for _, s := range snapshots {
		asked[s.Cluster] = s.Status != nil
	}
	for _, f := range []fault{silent(asked), narrow()} {
		found := f.explain(ways)
		if len(found) == 0 && len(ways) > 0 && (f.check != "path" || len(out) == 0) {
			found = []Finding{{Severity: OK, Check: f.check, Object: "tunnels between nodes", Cause: f.fine(ways)}}
		}
		out = append(out, found...)
	}
	return out
}

func (f fault) fine(ways []way) string {
	if f.check == "path MTU" {
		known := 0
		for _, w := range ways {
			if w.GetMtu() > 0 {
				known++
			}
		}
		return fmt.Sprintf("packets of full size get through on %d of %d ways, there and back; the others have not been tried yet", known, len(ways))
	}
	returning := 0
	for _, w := range ways {
		if w.GetPath() == "returning" {
			returning++
		}
	}
	if returning > 0 {
		return fmt.Sprintf("all %d probed ways answer; %d were down, and are held back for a while", len(ways), returning)
	}
	return fmt.Sprintf("all %d probed ways answer", len(ways))
}

// silent is of ways without an answer. asked are the clusters whose grants are
// known: another one's may leave a node out.
func silent(asked map[string]bool) fault {
	return fault{
		check: "path", is: way.down,
		node: func([]way) string { return "no node reaches it through the tunnel" },
		pair: func([]way) string { return "nothing gets through the tunnel between these clusters" },
		one:  func([]way) string { return "no answer through the tunnel" },
		next: func(ws []way) string {
			next := fmt.Sprintf("see that the node runs, and that nothing between the nodes stops %d/udp, either way; backends there are passed over meanwhile", ws[0].port)
			for _, w := range ws {
				if w.from.cluster != w.to.cluster && !asked[w.to.cluster] {
					return next + fmt.Sprintf("; a grant of %[1]s that leaves the node out looks the same from here: hawser mesh doctor, in %[1]s", w.to.cluster)
				}
			}
			return next
		},
	}
}

func narrow() fault {
	size := func(ws []way) string {
		least, full := ws[0].GetMtu(), ws[0].GetFullMtu()
		for _, w := range ws {
			least, full = min(least, w.GetMtu()), max(full, w.GetFullMtu())
		}
		return fmt.Sprintf("packets of more than %d bytes are lost, nodes send up to %d: small answers work, downloads hang", least, full)
	}
	return fault{
		check: "path MTU", is: way.narrow,
		node: func(ws []way) string { return "on every way to and from it " + size(ws) },
		pair: func(ws []way) string { return "between these clusters " + size(ws) },
		one:  size,
		next: func([]way) string {
			return "raise the MTU of the network on that way, or lower that of the nodes' underlay devices and restart their agents"
		},
	}
}

// explain finds the fewest causes of a fault: nodes, then pairs of clusters, then
// single ways by where they begin.
func (f fault) explain(ways []way) (out []Finding) {
	add := func(cluster, object, cause string, ws []way) {
		out = append(out, Finding{Severity: Problem, Cluster: cluster, Check: f.check, Object: object, Cause: cause, Next: f.next(ws)})
	}
	for {
		p, bad := f.worst(ways)
		if len(bad) == 0 {
			break
		}
		add(p.cluster, fmt.Sprintf("node %s (%s)", p, addrOf(p, bad)), f.node(bad), bad)
		ways = slices.DeleteFunc(slices.Clone(ways), func(w way) bool { return w.from == p || w.to == p })
	}
	pairs := map[[2]string][]way{}
	for _, w := range ways {
		k := [2]string{w.from.cluster, w.to.cluster}
		slices.Sort(k[:])
		pairs[k] = append(pairs[k], w)
	}
	for _, k := range slices.SortedFunc(maps.Keys(pairs), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) }) {
		ws := pairs[k]
		bad := f.of(ws)
		if k[0] != k[1] && len(bad) == len(ws) {
			add("", k[0]+" ↔ "+k[1], f.pair(bad), bad)
			continue
		}
		by := map[place][]way{}
		for _, w := range bad {
			by[w.from] = append(by[w.from], w)
		}
		for _, from := range slices.SortedFunc(maps.Keys(by), comparePlaces) {
			var to []string
			for _, w := range by[from] {
				to = append(to, fmt.Sprintf("%s (%s)", w.to, w.addr))
			}
			slices.Sort(to)
			add(from.cluster, "node "+from.String()+" → "+strings.Join(to, ", "), f.one(by[from]), by[from])
		}
	}
	return out
}

// worst is the node with which the most ways have the fault: all that are known to
// it, by two others at least who are well otherwise.
func (f fault) worst(ways []way) (worst place, bad []way) {
	at := map[place][]way{}
	for _, w := range ways {
		at[w.to] = append(at[w.to], w)
		at[w.from] = append(at[w.from], w)
	}
	for _, p := range slices.SortedFunc(maps.Keys(at), comparePlaces) {
		found := f.of(at[p])
		others := map[place]bool{}
		for _, w := range at[p] {
			for _, o := range []place{w.from, w.to} {
				if o != p && f.well(at[o], p) {
					others[o] = true
				}
			}
		}
		if len(found) == len(at[p]) && len(others) > 1 && len(found) > len(bad) {
			worst, bad = p, found
		}
	}
	return worst, bad
}

// well reports whether one of these ways has nothing to do with a node, and not
// the fault.
func (f fault) well(ways []way, but place) bool {
	return slices.ContainsFunc(ways, func(w way) bool { return w.from != but && w.to != but && !f.is(w) })
}

// of are those of the ways that have the fault.
func (f fault) of(ways []way) (out []way) {
	for _, w := range ways {
		if f.is(w) {
			out = append(out, w)
		}
	}
	return out
}

func addrOf(p place, ways []way) string {
	for _, w := range ways {
		if w.to == p {
			return w.addr
		}
	}
	return "?"
}

func comparePlaces(a, b place) int { return strings.Compare(a.String(), b.String()) }
