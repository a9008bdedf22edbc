// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/table"
	"github.com/hawser-mesh/hawser/policy/api"
)

const (
	eastApp1 identity.Number = 65536 + iota
	eastApp2
	eastOther                 // app2 in another namespace
	westApp2  identity.Number = 131072
	unknown   identity.Number = 70000
)

func set(t *testing.T, texts ...string) labels.Set {
	t.Helper()
	ls, err := labels.ParseSet(texts, labels.CNI)
	if err != nil {
		t.Fatal(err)
	}
	return ls
}

// demo is an engine of cluster east with a few identities.
func demo(t *testing.T, cfg Config) *Engine {
	t.Helper()
	cfg.Cluster = "east"
	e, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for n, texts := range map[identity.Number][]string{
		eastApp1:  {"mesh:cluster=east", "mesh:namespace=demo", "id=app1"},
		eastApp2:  {"mesh:cluster=east", "mesh:namespace=demo", "id=app2"},
		eastOther: {"mesh:cluster=east", "mesh:namespace=other", "id=app2"},
		westApp2:  {"mesh:cluster=west", "mesh:namespace=demo", "id=app2"},
	} {
		ls := set(t, texts...)
		cluster, _ := ls.Get(labels.Mesh, labels.ClusterKey)
		if err := e.UpsertIdentity(n, cluster, ls); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

func apply(t *testing.T, e *Engine, source string) {
	t.Helper()
	objects, err := api.Parse([]byte(source))
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		e.UpsertObject(o)
	}
}

func app1(t *testing.T) labels.Set {
	return set(t, "mesh:cluster=east", "mesh:namespace=demo", "id=app1")
}

const meshPolicy = "apiVersion: hawser.io/v1\nkind: MeshPolicy\nmetadata: {name: p, namespace: demo}\nspec:\n  endpointSelector: {matchLabels: {id: app1}}\n"

// ruleOf wraps a rule of the JSON array.
func ruleOf(body string) string {
	return `[{"labels":[{"key":"name","value":"l3-rule"}],"endpointSelector":{"matchLabels":{"id":"app1"}},` + body + `}]`
}

// TestWhoMay applies one object and lists the peers that may open port 80/tcp
// of app1 (or that app1 may open).
func TestWhoMay(t *testing.T) {
	names := map[identity.Number]string{
		identity.Host: "host", identity.World: "world", identity.Unmanaged: "unmanaged", identity.Health: "health",
		identity.Init: "init", identity.RemoteNode: "remote-node", identity.KubeAPIServer: "kube-apiserver", identity.WorldIPv4: "world-ipv4",
		eastApp1: "app1", eastApp2: "app2", eastOther: "other", westApp2: "west", unknown: "unknown",
	}
	everyone := strings.Join(slices.Sorted(maps.Values(names)), " ")
	const allIngress = `"ingress":[{"fromEndpoints":[{}]}]`
	for _, c := range []struct {
		name   string
		scope  Scope
		dir    datapath.Direction
		source string
		want   string
	}{
		{"the rule of the getting-started pages", "", datapath.Ingress,
			ruleOf(`"ingress":[{"fromEndpoints":[{"matchLabels":{"id":"app2"}}],"toPorts":[{"ports":[{"port":"80","protocol":"TCP"}]}]}]`), "app2 host other"},
		{"the same on another port", "", datapath.Ingress,
			ruleOf(`"ingress":[{"fromEndpoints":[{"matchLabels":{"id":"app2"}}],"toPorts":[{"ports":[{"port":"81","protocol":"TCP"}]}]}]`), "host"},
		{"the same by UDP", "", datapath.Ingress,
			ruleOf(`"ingress":[{"fromEndpoints":[{"matchLabels":{"id":"app2"}}],"toPorts":[{"ports":[{"port":"80","protocol":"UDP"}]}]}]`), "host"},
		{"scope mesh", ScopeMesh, datapath.Ingress, ruleOf(`"ingress":[{"fromEndpoints":[{"matchLabels":{"id":"app2"}}]}]`), "app2 host other west"},
		{"cluster named", "", datapath.Ingress, ruleOf(`"ingress":[{"fromEndpoints":[{"matchLabels":{"id":"app2","mesh:cluster":"west"}}]}]`), "host west"},
		{"cluster by its alias, scope mesh", ScopeMesh, datapath.Ingress, ruleOf(`"ingress":[{"fromEndpoints":[{"matchLabels":{"io.cilium.k8s.policy.cluster":"west"}}]}]`), "host west"},
		{"any cluster", "", datapath.Ingress, ruleOf(`"ingress":[{"fromEndpoints":[{"matchExpressions":[{"key":"mesh:cluster","operator":"Exists"}]}]}]`), "app1 app2 host other west"},
		{"a negated cluster is not the world", "", datapath.Ingress, ruleOf(`"ingress":[{"fromEndpoints":[{"matchExpressions":[{"key":"mesh:cluster","operator":"NotIn","values":["east"]}]}]}]`), "host west"},
		{"no cluster is nobody", "", datapath.Ingress, ruleOf(`"ingress":[{"fromEndpoints":[{"matchExpressions":[{"key":"mesh:cluster","operator":"DoesNotExist"}]}]}]`), "host"},
		{"a negated label is not the world", "", datapath.Ingress, ruleOf(`"ingress":[{"fromEndpoints":[{"matchExpressions":[{"key":"id","operator":"NotIn","values":["app1"]}]}]}]`), "app2 host other"},
		{"source k8s does not match cni", "", datapath.Ingress, ruleOf(`"ingress":[{"fromEndpoints":[{"matchLabels":{"k8s:id":"app2"}}]}]`), "host"},
		{"source cni matches", "", datapath.Ingress, ruleOf(`"ingress":[{"fromEndpoints":[{"matchLabels":{"cni:id":"app2"}}]}]`), "app2 host other"},
		{"all endpoints", "", datapath.Ingress, ruleOf(allIngress), "app1 app2 host other"},
		{"all endpoints of the mesh", ScopeMesh, datapath.Ingress, ruleOf(allIngress), "app1 app2 host other west"},
		{"nobody", "", datapath.Ingress, ruleOf(`"ingress":[{"fromEndpoints":[]}]`), "host"},
		{"default deny", "", datapath.Ingress, ruleOf(`"ingress":[{}]`), "host"},
		{"egress default deny includes the host", "", datapath.Egress, ruleOf(`"egress":[{}]`), ""},
		{"the other direction stays open", "", datapath.Egress, ruleOf(`"ingress":[{}]`), everyone},
		{"any peer on the port", "", datapath.Ingress, ruleOf(`"ingress":[{"toPorts":[{"ports":[{"port":"80"}]}]}]`), everyone},
		{"entity all", "", datapath.Egress, ruleOf(`"egress":[{"toEntities":["all"]}]`), everyone},
		{"entity none", "", datapath.Egress, ruleOf(`"egress":[{"toEntities":["none"]}]`), ""},
		{"entity world", "", datapath.Egress, ruleOf(`"egress":[{"toEntities":["world"]}]`), "world world-ipv4"},
		{"entity cluster", "", datapath.Egress, ruleOf(`"egress":[{"toEntities":["cluster"]}]`), "app1 app2 health host init other remote-node"},
		{"entity mesh", "", datapath.Egress, ruleOf(`"egress":[{"toEntities":["mesh"]}]`), "app1 app2 health host init other remote-node west"},
		{"entity host", "", datapath.Egress, ruleOf(`"egress":[{"toEntities":["host"]}]`), "host"},
		{"entities remote-node, health, init", "", datapath.Egress, ruleOf(`"egress":[{"toEntities":["remote-node","health","init"]}]`), "health init remote-node"},
		{"namespaced peers", "", datapath.Ingress, meshPolicy + "  ingress: [{fromEndpoints: [{matchLabels: {id: app2}}]}]", "app2 host"},
		{"another namespace", "", datapath.Ingress, meshPolicy + "  ingress: [{fromEndpoints: [{matchLabels: {k8s:io.kubernetes.pod.namespace: other}}]}]", "host other"},
		{"a policy of another namespace does not select", "", datapath.Ingress, strings.Replace(meshPolicy, "demo", "other", 1) + "  ingress: [{}]", everyone},
		{"deny beats a narrower allow", "", datapath.Ingress, meshPolicy + "  ingress: [{fromEndpoints: [{}], toPorts: [{ports: [{port: '80'}]}]}]\n  ingressDeny: [{fromEndpoints: [{matchLabels: {id: app2}}]}]", "app1 host"},
		{"deny of any peer beats a wider allow", "", datapath.Ingress, meshPolicy + "  ingress: [{fromEndpoints: [{}]}]\n  ingressDeny: [{toPorts: [{ports: [{port: '80', protocol: TCP}]}]}]", "host"},
		{"deny on another port", "", datapath.Ingress, meshPolicy + "  ingress: [{fromEndpoints: [{}]}]\n  ingressDeny: [{toPorts: [{ports: [{port: '81', protocol: TCP}]}]}]", "app1 app2 host"},
		{"only a deny, without default deny", "", datapath.Egress, meshPolicy + "  enableDefaultDeny: {egress: false}\n  egressDeny: [{toEntities: [cluster, world]}]", "kube-apiserver unknown unmanaged west"},
		{"only an allow, without default deny", "", datapath.Egress, meshPolicy + "  enableDefaultDeny: {egress: false}\n  egress: [{toEntities: [world]}]", everyone},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := demo(t, Config{Scope: c.scope})
			id, err := e.AcquireRuleSet(app1(t))
			if err != nil {
				t.Fatal(err)
			}
			apply(t, e, c.source)
			e.Changes()
			rs, _ := e.RuleSet(id)
			var got []string
			for n, name := range names {
				if Decide(rs, c.dir, Peer{Identity: n}, api.TCP, 80).Allow {
					got = append(got, name)
				}
			}
			slices.Sort(got)
			if strings.Join(got, " ") != c.want {
				t.Errorf("may: %s\nwant: %s\n%+v", strings.Join(got, " "), c.want, rs)
			}
		})
	}
}

func TestOriginsAndSelecting(t *testing.T) {
	e := demo(t, Config{})
	id, err := e.AcquireRuleSet(app1(t))
	if err != nil {
		t.Fatal(err)
	}
	apply(t, e, ruleOf(`"ingress":[{},{"fromEndpoints":[{"matchLabels":{"id":"app2"}}]}]`))
	apply(t, e, meshPolicy+"  ingressDeny: [{fromEntities: [world]}]")
	apply(t, e, "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: two}\nspecs:\n- {endpointSelector: {}, egress: [{toEntities: [world]}]}\n- {endpointSelector: {matchLabels: {id: nobody}}, ingress: [{}]}")
	e.Changes()
	rs, _ := e.RuleSet(id)
	for _, c := range []struct {
		dir  datapath.Direction
		peer identity.Number
		want string
	}{
		{datapath.Ingress, eastApp2, "_/l3-rule ingress[1]"},
		{datapath.Ingress, identity.World, "demo/p ingressDeny[0]"},
		{datapath.Egress, identity.World, "_/two specs[0].egress[0]"},
		{datapath.Ingress, westApp2, ""},
	} {
		d := Decide(rs, c.dir, Peer{Identity: c.peer}, api.TCP, 80)
		if got := e.Origin(d.Origin); got != c.want || d.Default != (c.want == "") {
			t.Errorf("%s %d: decided by %q (default %v), want %q", c.dir, c.peer, got, d.Default, c.want)
		}
	}
	if got := e.DenyOrigin(id, datapath.Ingress); got != "_/l3-rule, demo/p default deny" {
		t.Errorf("ingress default deny: %q", got)
	}
	if got := e.DenyOrigin(id, datapath.Egress); got != "_/two default deny" {
		t.Errorf("egress default deny: %q", got)
	}
	if got := e.DenyOrigin(99, datapath.Egress); got != "" {
		t.Errorf("default deny of no rule set: %q", got)
	}
	if got := e.Selecting(id); !slices.Equal(got, []string{"_/l3-rule", "_/two", "demo/p"}) {
		t.Errorf("selecting: %q", got)
	}
	origin := Decide(rs, datapath.Ingress, Peer{Identity: eastApp2}, api.TCP, 80).Origin
	e.DeleteObject(api.ClusterWide, "l3-rule")
	if e.Origin(origin) != "_/l3-rule ingress[1]" {
		t.Error("the origin of a deleted rule is not known to late events")
	}
	for i := range keptOrigins + 1 {
		e.origins.release(e.origins.acquire(strings.Repeat("x", i%90) + string(rune('a'+i/90))))
	}
	if got := e.Origin(origin); got != "" {
		t.Errorf("origins of deleted rules pile up: %q is still known", got)
	}
}

func TestRuleSetNumbers(t *testing.T) {
	a, b, c := app1(t), set(t, "id=b"), set(t, "id=c")
	e := demo(t, Config{RuleSetIDs: map[string]uint32{b.Hash(): 2, c.Hash(): 3}})
	acquire := func(ls labels.Set, want uint32) {
		t.Helper()
		if id, err := e.AcquireRuleSet(ls); err != nil || id != want {
			t.Errorf("rule set %d, error %v: want %d", id, err, want)
		}
	}
	acquire(a, 4) // 2 and 3 are kept for b and c
	acquire(a, 4)
	acquire(b, 2)
	if got := e.RuleSetIDs(); !maps.Equal(got, map[string]uint32{a.Hash(): 4, b.Hash(): 2, c.Hash(): 3}) {
		t.Errorf("numbers to keep: %v", got)
	}
	e.DropUnclaimed()
	acquire(c, 3) // free now
	e.ReleaseRuleSet(a)
	acquire(set(t, "id=d"), 5)
	e.ReleaseRuleSet(a)
	acquire(set(t, "id=e"), 4)

	tbl := table.New[uint32]("rulesets", datapath.RuleSet.Equal)
	e.Publish(tbl)
	if tbl.Len() != 4 {
		t.Errorf("%d rule sets published, want 4", tbl.Len())
	}
	e.ReleaseRuleSet(b)
	if n := e.Publish(tbl); n != 1 || tbl.Len() != 3 {
		t.Errorf("after a release: %d changes and %d rule sets", n, tbl.Len())
	}
	if n := e.Publish(tbl); n != 0 {
		t.Errorf("nothing happened, and %d changes", n)
	}
	if _, err := New(Config{Cluster: "east", RuleSetIDs: map[string]uint32{"x": 1}}); err == nil {
		t.Error("the init rule set can be recovered for labels")
	}
	if _, err := New(Config{Cluster: "east", Scope: "x"}); err == nil {
		t.Error("any scope is accepted")
	}
	if _, err := New(Config{}); err == nil {
		t.Error("no own cluster is accepted")
	}
}

// TestChangeTouchesOnlyItsEntries counts what is written.
func TestChangeTouchesOnlyItsEntries(t *testing.T) {
	e := demo(t, Config{})
	if _, err := e.AcquireRuleSet(app1(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := e.AcquireRuleSet(set(t, "id=bystander")); err != nil {
		t.Fatal(err)
	}
	apply(t, e, ruleOf(`"ingress":[{"fromEndpoints":[{"matchLabels":{"id":"app2"}}],"toPorts":[{"ports":[{"port":"80","protocol":"TCP"}]}]}]`))
	e.Changes()
	count := func(what string, sets, upserts, deletes int) {
		t.Helper()
		u, d := 0, 0
		changes := e.Changes()
		for _, c := range changes {
			u, d = u+len(c.Upsert), d+len(c.Delete)
		}
		if len(changes) != sets || u != upserts || d != deletes {
			t.Errorf("%s: %d rule sets, %d upserts, %d deletes; want %d, %d, %d", what, len(changes), u, d, sets, upserts, deletes)
		}
	}
	ls := set(t, "mesh:cluster=east", "mesh:namespace=demo", "id=app2", "version=2")
	if err := e.UpsertIdentity(unknown, "east", ls); err != nil {
		t.Fatal(err)
	}
	count("identity comes", 1, 1, 0)
	if err := e.UpsertIdentity(unknown, "east", ls); err != nil {
		t.Fatal(err)
	}
	count("identity again", 0, 0, 0)
	if err := e.UpsertIdentity(unknown+1, "east", set(t, "mesh:cluster=east", "id=app3")); err != nil {
		t.Fatal(err)
	}
	count("identity that no rule selects", 0, 0, 0)
	apply(t, e, ruleOf(`"ingress":[{"fromEndpoints":[{"matchLabels":{"id":"app2"}}],"toPorts":[{"ports":[{"port":"80","protocol":"TCP"},{"port":"81","protocol":"TCP"}]}]}]`))
	count("a port more, three identities", 1, 3, 0)
	e.DeleteIdentity(unknown)
	count("identity goes", 1, 0, 2)
	e.DeleteIdentity(identity.World)
	count("reserved identities stay", 0, 0, 0)
	e.DeleteObject(api.ClusterWide, "l3-rule")
	count("object goes", 1, 0, 5) // two identities on two ports, and the host
	if len(e.selectors) != 0 || len(e.selIndex.pivots) != 0 || len(e.ruleIndex.pivots) != 0 {
		t.Error("selectors are left behind")
	}
}

func TestRefusedIdentities(t *testing.T) {
	e := demo(t, Config{})
	for name, c := range map[string]struct {
		n       identity.Number
		cluster string
		labels  labels.Set
	}{
		"of another cluster": {unknown, "west", set(t, "mesh:cluster=east", "id=app2")},
		"of no cluster":      {unknown, "", set(t, "id=app2")},
		"without cluster":    {unknown, "west", set(t, "id=app2")},
		"reserved label":     {unknown, "west", set(t, "mesh:cluster=west", "reserved:host")},
		"cidr label":         {unknown, "west", set(t, "mesh:cluster=west", "cidr:10.0.0.0/8")},
		"any label":          {unknown, "west", set(t, "mesh:cluster=west", "any:x")},
		"node-local number":  {identity.LocalBase + 1, "west", set(t, "mesh:cluster=west")},
	} {
		if err := e.UpsertIdentity(c.n, c.cluster, c.labels); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := e.UpsertIdentity(identity.World, "west", set(t, "mesh:cluster=west", "id=app2")); err != nil {
		t.Error(err)
	}
	if e.identities[identity.World].labels.String() != "reserved:world" {
		t.Error("a record changed the labels of a reserved identity")
	}
}

func TestInitRuleSet(t *testing.T) {
	rs := InitRuleSet()
	for _, d := range []datapath.Direction{datapath.Ingress, datapath.Egress} {
		if !Decide(rs, d, Peer{Identity: identity.Host}, api.TCP, 80).Allow {
			t.Errorf("%s: the host is denied", d)
		}
		for _, n := range []identity.Number{identity.World, identity.RemoteNode, eastApp1} {
			if Decide(rs, d, Peer{Identity: n}, api.TCP, 80).Allow {
				t.Errorf("%s: %d is allowed", d, n)
			}
		}
	}
}

func TestModes(t *testing.T) {
	for mode, want := range map[Mode][2]bool{ModeDefault: {true, false}, "": {true, false}, ModeAlways: {true, true}, ModeNever: {false, false}} {
		e := demo(t, Config{Mode: mode})
		id, err := e.AcquireRuleSet(app1(t))
		if err != nil {
			t.Fatal(err)
		}
		apply(t, e, ruleOf(`"ingress":[{"fromEndpoints":[{"matchLabels":{"id":"app2"}}]}]`))
		e.Changes()
		rs, _ := e.RuleSet(id)
		for d, closed := range want {
			dir := datapath.Direction(d)
			if got := !Decide(rs, dir, Peer{Identity: eastOther + 100}, api.TCP, 80).Allow; got != closed {
				t.Errorf("mode %q, %s of a stranger: denied=%v", mode, dir, got)
			}
		}
		if !Decide(rs, datapath.Ingress, Peer{Identity: eastApp2}, api.TCP, 80).Allow || !Decide(rs, datapath.Ingress, Peer{Identity: identity.Host}, api.TCP, 80).Allow {
			t.Errorf("mode %q: what a rule allows is denied", mode)
		}
	}
	if _, err := New(Config{Cluster: "east", Mode: "x"}); err == nil {
		t.Error("any mode is accepted")
	}
}
