// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/testutil/policymodel"
	"github.com/hawser-mesh/hawser/policy/api"
)

// cramped are three engines that are told the same: one with a limit, one
// without, and each time one with the limit that hears it all at once.
type cramped struct {
	limit     int
	scope     Scope
	e, all    *Engine
	m         *policymodel.Model
	endpoints map[string]policymodel.Endpoint
	tries     [2]trie
	mirror    map[uint32]datapath.RuleSet
	seen      map[extent]int
	back      int // directions that were less than whole before
	less      map[string]bool
}

// TestEngineWithoutRoom changes policies, identities and endpoints at random under
// a limit: no rule set is larger, nothing passes that the model denies, what has
// room is all there, and who comes late ends with the same entries.
func TestEngineWithoutRoom(t *testing.T) {
	seen, back := map[extent]int{}, 0
	for seed := range uint64(24) {
		r := rand.New(rand.NewPCG(seed, 10))
		scope, limit := policymodel.Pick(r, ScopeLocal, ScopeMesh), policymodel.Pick(r, 1, 4, 10, 25, 60)
		t.Run(fmt.Sprintf("seed %d %s %d", seed, scope, limit), func(t *testing.T) {
			c := &cramped{limit: limit, scope: scope, m: policymodel.New("east", scope == ScopeMesh), seen: seen, less: map[string]bool{},
				e: limited(t, scope, limit), all: limited(t, scope, 0), tries: [2]trie{{}, {}},
				endpoints: map[string]policymodel.Endpoint{}, mirror: map[uint32]datapath.RuleSet{}}
			w, again := policymodel.NewWorld(seed), policymodel.NewWorld(seed)
			m, endpoints := policymodel.New("east", scope == ScopeMesh), map[string]policymodel.Endpoint{}
			for step := range 40 {
				change(t, w, c.e, c.m, c.endpoints)
				change(t, again, c.all, m, endpoints)
				if step%3 == 0 {
					continue // let changes pile up
				}
				follow(t, c.e, c.mirror)
				for _, cidr := range c.e.CIDRChanges() {
					c.tries[map[bool]int{true: 1}[cidr.Block]].take(cidr)
				}
				c.all.Changes()
				c.compare(t)
			}
			back += c.back
		})
	}
	if seen[whole] < 100 || seen[deniesOnly] < 100 || seen[nothing] < 100 || back < 5 {
		t.Errorf("too few directions of each extent: %v, %d came back", seen, back)
	}
}

func limited(t *testing.T, scope Scope, limit int) *Engine {
	t.Helper()
	e, err := New(Config{Cluster: "east", Scope: scope, MaxEntries: limit})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func (c *cramped) compare(t *testing.T) {
	t.Helper()
	for _, e := range []*Engine{c.e, c.all} { // those who hear it late have no prefixes of before
		for e.DropRetired() || len(e.prefixes.retired) > 0 {
		}
	}
	follow(t, c.e, c.mirror)
	c.all.Changes()
	late := c.late(t)
	for name, ep := range c.endpoints {
		rs, sets := c.ruleSet(t, c.e, ep)
		if !rs.Equal(c.mirror[rs.ID]) {
			t.Fatalf("rule set %d: the deltas lead to\n%+v\nnot to\n%+v", rs.ID, c.mirror[rs.ID], rs)
		}
		if len(rs.Entries) > c.limit || len(rs.Entries) != sets.size() {
			t.Fatalf("rule set %d: %d entries, counted %d, limit %d", rs.ID, len(rs.Entries), sets.size(), c.limit)
		}
		if same, _ := c.ruleSet(t, late, ep); !maps.Equal(rs.Entries, same.Entries) {
			t.Fatalf("rule set %d: an engine told later has\n%+v\nnot\n%+v", rs.ID, same.Entries, rs.Entries)
		}
		if all, _ := c.ruleSet(t, c.all, ep); len(all.Entries) <= c.limit && !maps.Equal(rs.Entries, all.Entries) {
			t.Fatalf("rule set %d: %d entries have room, but\n%+v\nis not\n%+v", rs.ID, len(all.Entries), rs.Entries, all.Entries)
		}
		for k, entry := range rs.Entries {
			if extent := sets.dirs[k.Direction].extent; extent != whole && k.Identity != identity.Host && !entry.Deny && (extent == nothing || k.Identity != 0) {
				t.Fatalf("rule set %d: %+v allows one identity, which is left out", rs.ID, k)
			}
		}
		for dir, d := range sets.dirs {
			c.seen[d.extent]++
			key := fmt.Sprint(name, dir)
			if c.less[key] && d.extent == whole && len(d.rows) > 0 {
				c.back++
			}
			c.less[key] = d.extent != whole
		}
		c.judge(t, ep, rs, sets)
	}
	for id := range c.m.Objects {
		told := slices.ContainsFunc(c.e.Excesses(), func(x Excess) bool { return x.Object == id })
		if told && !slices.ContainsFunc(slices.Collect(maps.Values(c.less)), func(less bool) bool { return less }) {
			t.Fatalf("%s is told as too much, but all have room", id)
		}
	}
}

// judge compares with the model: exactly where nothing is missed, else for what
// must not pass.
func (c *cramped) judge(t *testing.T, ep policymodel.Endpoint, rs datapath.RuleSet, sets *ruleSet) {
	t.Helper()
	eachPacket(c.tries, func(d datapath.Direction, peer policymodel.Far, as Peer, proto uint8, port uint16) {
		half := sets.dirs[d]
		exact := half.extent == whole || half.extent == deniesOnly && !half.closed || d == datapath.Ingress && peer.ID == identity.Host
		got, want := Decide(rs, d, as, proto, port), c.m.Allowed(ep, d, peer, proto, port)
		if got.Allow && !want || exact && got.Allow != want {
			t.Fatalf("%s (%d) of %s %v, peer %+v %+v (%s), %d/%d: %+v, the model says allow=%v",
				d, half.extent, ep.Labels, ep.Ports, peer, as, c.m.Identities[peer.ID], proto, port, got, want)
		}
	})
}

func (c *cramped) ruleSet(t *testing.T, e *Engine, ep policymodel.Endpoint) (datapath.RuleSet, *ruleSet) {
	t.Helper()
	id, err := e.AcquireRuleSet(ep.Labels, named(ep.Ports)...)
	if err != nil {
		t.Fatal(err)
	}
	e.ReleaseRuleSet(ep.Labels, named(ep.Ports)...)
	rs, _ := e.RuleSet(id)
	return rs, e.byID[id]
}

// late is an engine that is told how everything is now.
func (c *cramped) late(t *testing.T) *Engine {
	t.Helper()
	e := limited(t, c.scope, c.limit)
	for _, ep := range c.endpoints {
		if _, err := e.AcquireRuleSet(ep.Labels, named(ep.Ports)...); err != nil {
			t.Fatal(err)
		}
	}
	e.SetKubeAPIServers(c.m.APIServers)
	for a, ports := range c.m.AddrPorts {
		e.SetAddressPorts("east", a, named(ports))
	}
	for _, o := range c.m.Objects {
		e.UpsertObject(o)
	}
	for n, ls := range c.m.Identities {
		cluster, _ := ls.Get(labels.Mesh, labels.ClusterKey)
		if err := e.UpsertIdentity(n, cluster, ls); err != nil {
			t.Fatal(err)
		}
		e.SetNamedPorts(n, named(c.m.Ports[n]))
	}
	tellServices(e, c.m)
	e.Changes()
	return e
}

// Ports times identities are bounded: of an object that is accepted, at most so many
// entries are ever made, whoever adds identities; what is denied stays denied.
func TestPortsTimesIdentities(t *testing.T) {
	const ports, limit = 32000, 1 << 18
	e := limited(t, ScopeLocal, limit)
	come := func(first, last int) {
		t.Helper()
		for i := first; i < last; i++ {
			if err := e.UpsertIdentity(identity.Number(65536+i), "east", appLabels(i)); err != nil {
				t.Fatal(err)
			}
		}
	}
	id, err := e.AcquireRuleSet(appLabels(0))
	if err != nil {
		t.Fatal(err)
	}
	passes := func(peer int, port uint16, want bool) {
		t.Helper()
		rs, _ := e.RuleSet(id)
		if got := Decide(rs, datapath.Ingress, Peer{Identity: identity.Number(65536 + peer)}, api.TCP, port); got.Allow != want || len(rs.Entries) > limit {
			t.Errorf("app-%d on port %d: %+v, want allow=%v; %d entries", peer, port, got, want, len(rs.Entries))
		}
		if got := Decide(rs, datapath.Ingress, Peer{Identity: identity.Host}, api.TCP, port); !got.Allow {
			t.Error("the own host's probes do not arrive")
		}
	}
	come(0, 2)
	e.UpsertObject(manyPorts(t, ports, false))
	e.UpsertObject(denyApp(t, 1, 3))
	e.Changes()
	passes(0, 3, true)
	passes(1, 3, false)
	if x := e.Excesses(); len(x) != 0 {
		t.Errorf("with room: %+v", x)
	}
	most := uint64(64 << 20) // as much as the entries of those that fit, about
	if all := allocated(func() { come(2, 1000); e.Changes() }); all > most {
		t.Errorf("%d MiB allocated, want %d at most", all>>20, most>>20)
	}
	passes(0, 3, false)
	passes(1, 3, false)
	rs, _ := e.RuleSet(id)
	if n := rs.Entries[datapath.PolicyKey{Identity: 65537, Protocol: api.TCP, Port: 3}]; !n.Deny || !rs.Ingress || len(rs.Entries) != 2 {
		t.Errorf("%d entries; the deny is %+v", len(rs.Entries), n)
	}
	want := Excess{Object: "demo/ports", Directions: []datapath.Direction{datapath.Ingress}, RuleSets: 1, Entries: 1000 * 3 * ports, Limit: limit}
	if x := e.Excesses(); len(x) != 1 || fmt.Sprint(x[0]) != fmt.Sprint(want) {
		t.Errorf("told %+v, want %+v", x, want)
	}
	if why := e.DenyOrigin(id, datapath.Ingress); why != "demo/ports default deny; more than 262144 entries: rules left out" {
		t.Errorf("the drop says %q", why)
	}
	if all := allocated(func() { come(1000, 1001); e.Changes() }); all > 1<<20 {
		t.Errorf("%d KiB allocated for one identity more", all>>10)
	}
	for i := 2; i < 1001; i++ {
		e.DeleteIdentity(identity.Number(65536 + i))
	}
	e.Changes()
	passes(0, 3, true)
	passes(1, 3, false)
	passes(1, 5, true)
	if x := e.Excesses(); len(x) != 0 {
		t.Errorf("when they left: %+v", x)
	}
}

// denyApp denies an app on one port.
func denyApp(t *testing.T, app, port int) api.Object {
	t.Helper()
	objects, err := api.Parse(fmt.Appendf(nil, "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: deny, namespace: demo}\nspec:\n  endpointSelector: {}\n"+
		"  enableDefaultDeny: {ingress: false}\n  ingressDeny: [{fromEndpoints: [{matchLabels: {app: app-%d}}], toPorts: [{ports: [{port: \"%d\", protocol: TCP}]}]}]\n", app, port))
	if err != nil {
		t.Fatal(err)
	}
	return objects[0]
}

// When the denies alone are too many, nothing passes that they let pass: not even
// where nothing but they is enforced. The other direction is as it was.
func TestDeniesWithoutRoom(t *testing.T) {
	e := limited(t, ScopeLocal, 1<<18)
	for i := range 4 {
		if err := e.UpsertIdentity(identity.Number(65536+i), "east", appLabels(i)); err != nil {
			t.Fatal(err)
		}
	}
	id, err := e.AcquireRuleSet(appLabels(0))
	if err != nil {
		t.Fatal(err)
	}
	o := manyPorts(t, 32000, true)
	o.Rules[0].DefaultDeny = [2]bool{}
	e.UpsertObject(o)
	e.Changes()
	rs, _ := e.RuleSet(id)
	for _, d := range []datapath.Direction{datapath.Ingress, datapath.Egress} {
		if got := Decide(rs, d, Peer{Identity: identity.World}, api.TCP, 80); got.Allow != (d == datapath.Egress) {
			t.Errorf("%s of the world: %+v", d, got)
		}
	}
	if x := e.Excesses(); len(rs.Entries) != 1 || len(x) != 1 || !x[0].Closed {
		t.Errorf("%d entries, told %+v", len(rs.Entries), x)
	}
	if why := e.DenyOrigin(id, datapath.Ingress); why != "more than 262144 entries: nothing passes" {
		t.Errorf("the drop says %q", why)
	}
	e.DeleteIdentity(65536)
	e.DeleteIdentity(65537)
	e.Changes()
	rs, _ = e.RuleSet(id)
	if got := Decide(rs, datapath.Ingress, Peer{Identity: identity.World}, api.TCP, 80); !got.Allow || len(e.Excesses()) != 0 {
		t.Errorf("with room: %+v", got)
	}
	for port, want := range map[uint16]bool{3: false, 4: true} {
		if got := Decide(rs, datapath.Ingress, Peer{Identity: 65538}, api.TCP, port); got.Allow != want {
			t.Errorf("with room, port %d: %+v", port, got)
		}
	}
}

// manyPorts is a policy that lets everybody in on so many odd ports, or denies them.
func manyPorts(t *testing.T, ports int, deny bool) api.Object {
	t.Helper()
	var b strings.Builder
	kind := "ingress"
	if deny {
		kind = "ingressDeny"
	}
	b.WriteString("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: ports, namespace: demo}\nspec:\n  endpointSelector: {}\n" +
		"  " + kind + ":\n  - fromEndpoints: [{}]\n    toPorts:\n    - ports:\n")
	for i := range ports {
		fmt.Fprintf(&b, "      - {port: \"%d\"}\n", 2*i+1)
	}
	if b.Len() > 1<<20 {
		t.Fatalf("%d bytes are more than one input", b.Len())
	}
	objects, err := api.Parse([]byte(b.String()))
	if err == nil {
		err = Check(objects...)
	}
	if err != nil {
		t.Fatal(err)
	}
	return objects[0]
}
