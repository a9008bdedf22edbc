// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy/api"
)

// An object of 10,000 rules is read, resolved and taken back like any other.
func TestLargeObject(t *testing.T) {
	const rules = 10000
	var b strings.Builder
	b.WriteString("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: large, namespace: demo}\nspec:\n  endpointSelector: {}\n  ingress:\n")
	for i := range rules {
		fmt.Fprintf(&b, "  - {fromEndpoints: [{matchLabels: {app: app-%d}}], toPorts: [{ports: [{port: %d}]}]}\n", i, 1+i)
	}
	objects, err := api.Parse([]byte(b.String()))
	if err != nil || len(objects[0].Rules[0].Parts) != rules {
		t.Fatalf("%d objects, %v", len(objects), err)
	}
	e, err := New(Config{Cluster: "east"})
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{0, 5000, 9999} {
		if err := e.UpsertIdentity(identity.Number(65536+i), "east", appLabels(i)); err != nil {
			t.Fatal(err)
		}
	}
	id, err := e.AcquireRuleSet(appLabels(-1))
	if err != nil {
		t.Fatal(err)
	}
	e.UpsertObject(objects[0])
	e.Changes()
	rs, _ := e.RuleSet(id)
	for i, port := range map[int]uint16{0: 1, 5000: 5001, 9999: 10000} {
		for p, want := range map[uint16]bool{port: true, port + 1: false} {
			if got := Decide(rs, datapath.Ingress, Peer{Identity: identity.Number(65536 + i)}, api.TCP, p); got.Allow != want {
				t.Errorf("app-%d on %d: %+v, want allow=%v", i, p, got, want)
			}
		}
	}
	e.DeleteObject("demo", "large")
	e.Changes()
	if rs, _ = e.RuleSet(id); rs.Ingress || len(rs.Entries) != 0 {
		t.Errorf("left behind: ingress %v, %d entries", rs.Ingress, len(rs.Entries))
	}
	if len(e.selectors) != 0 {
		t.Errorf("%d selectors left behind", len(e.selectors))
	}
}

func appLabels(i int) labels.Set {
	return labels.New(
		labels.Label{Source: labels.Mesh, Key: labels.ClusterKey, Value: "east"},
		labels.Label{Source: labels.Mesh, Key: labels.NamespaceKey, Value: "demo"},
		labels.Label{Source: labels.Kubernetes, Key: "app", Value: fmt.Sprintf("app-%d", i)},
	)
}

// Endpoints that are audited have a rule set apart with the same entries; a node
// that audits has only such.
func TestAuditedRuleSets(t *testing.T) {
	for node, want := range map[bool][2]bool{false: {false, true}, true: {true, true}} {
		e, err := New(Config{Cluster: "east", Audit: node})
		if err != nil {
			t.Fatal(err)
		}
		plain, err1 := e.Acquire(Subject{Labels: appLabels(1)})
		audited, err2 := e.Acquire(Subject{Labels: appLabels(1), Audit: true})
		if err1 != nil || err2 != nil || plain == audited {
			t.Fatalf("rule sets %d and %d, %v %v", plain, audited, err1, err2)
		}
		e.Changes()
		for i, id := range []uint32{plain, audited} {
			if rs, _ := e.RuleSet(id); rs.Audit != want[i] {
				t.Errorf("node audits %v: rule set %d is audited: %v", node, i, rs.Audit)
			}
		}
		if names := e.RuleSetIDs(); names[Subject{Labels: appLabels(1), Audit: true}.Name()] != audited || names[appLabels(1).Hash()] != plain {
			t.Errorf("names %v", names)
		}
		e.Release(Subject{Labels: appLabels(1), Audit: true})
		if _, ok := e.RuleSet(audited); ok {
			t.Error("the audited rule set is left")
		}
		if _, ok := e.RuleSet(plain); !ok {
			t.Error("the other rule set is gone")
		}
	}
}

// manyExcepts is an object of rules that each allow all but a few prefixes.
func manyExcepts(t *testing.T, rules int, cidr func(i int) string) api.Object {
	t.Helper()
	var b strings.Builder
	b.WriteString("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: large, namespace: demo}\nspec:\n  endpointSelector: {}\n  egress:\n")
	for i := range rules {
		fmt.Fprintf(&b, "  - {toCIDRSet: [{%s}]}\n", cidr(i))
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

func address(n int) string { return fmt.Sprintf("10.%d.%d.%d", n>>16, n>>8&255, n&255) }

// Rules that each allow nearly every prefix of each other cost what they are, not
// what each of them selects: in what is kept, in what is allocated to resolve
// them, and when they go.
func TestManyExcepts(t *testing.T) {
	for _, c := range []struct {
		name            string
		rules, prefixes int
		cidr            func(i int) string
		allowed, denied []string // of the prefixes
	}{
		{"one address each", 6000, 6001, func(i int) string {
			return "cidr: 0.0.0.0/0, except: [" + address(i) + "/32]"
		}, []string{"0.0.0.0/0", "10.0.0.0/32", "10.0.23.111/32"}, nil},
		{"twenty networks each", 2000, 40001, func(i int) string {
			var list []string
			for k := range 20 {
				list = append(list, address((i*20+k)<<8)+"/24")
			}
			return "cidr: 10.0.0.0/8, except: [" + strings.Join(list, ", ") + "]"
		}, []string{"10.0.0.0/8", "10.0.5.0/24"}, nil},
		{"the same one each, and one more", 3000, 3002, func(i int) string {
			return "cidr: 0.0.0.0/0, except: [192.168.0.0/16, " + address(i) + "/32]"
		}, []string{"0.0.0.0/0", "10.0.0.1/32"}, []string{"192.168.0.0/16"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := manyExcepts(t, c.rules, c.cidr)
			e, err := New(Config{Cluster: "east"})
			if err != nil {
				t.Fatal(err)
			}
			id, err := e.AcquireRuleSet(appLabels(1))
			if err != nil {
				t.Fatal(err)
			}
			e.Changes()
			all := allocated(func() { e.UpsertObject(o); e.Changes() })
			if most := uint64(c.prefixes) * 20 << 10; all > most {
				t.Errorf("%d MiB allocated for %d prefixes, want %d at most", all>>20, c.prefixes, most>>20)
			}
			pairs := 0
			for _, i := range e.identities {
				pairs += len(i.matched)
			}
			if pairs > 10 {
				t.Errorf("%d pairs of selector and identity are kept", pairs)
			}
			rs, _ := e.RuleSet(id)
			if len(rs.Entries) > c.prefixes {
				t.Errorf("%d entries for %d prefixes", len(rs.Entries), c.prefixes)
			}
			numbers := map[string]identity.Number{}
			for _, cidr := range e.CIDRChanges() {
				numbers[cidr.Prefix.String()] = cidr.Number
			}
			for want, list := range map[bool][]string{true: c.allowed, false: c.denied} {
				for _, p := range list {
					n, ok := numbers[p]
					if got := Decide(rs, datapath.Egress, Peer{Identity: n}, api.TCP, 80); !ok || got.Allow != want {
						t.Errorf("%s (identity %d): %+v, want allow=%v", p, n, got, want)
					}
				}
			}
			e.DeleteObject("demo", "large")
			e.Changes()
			e.DropRetired()
			e.DropRetired()
			e.Changes()
			if rs, _ = e.RuleSet(id); rs.Egress || len(rs.Entries) != 0 {
				t.Errorf("left behind: egress %v, %d entries", rs.Egress, len(rs.Entries))
			}
			if d := e.byID[id].dirs[datapath.Egress]; len(d.nets.points)+len(d.nets.shapes)+len(d.nets.dirty)+len(d.rows) != 0 {
				t.Errorf("left behind: %d points, %d shapes, %d dirty, %d rows", len(d.nets.points), len(d.nets.shapes), len(d.nets.dirty), len(d.rows))
			}
		})
	}
}

// allocated is how many bytes do allocates, those given back included.
func allocated(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// The rule behind an entry is one that allows it.
func TestOriginAmongExcepts(t *testing.T) {
	o := manyExcepts(t, 2, func(i int) string { return "cidr: 0.0.0.0/0, except: [" + address(i) + "/32]" })
	e, err := New(Config{Cluster: "east"})
	if err != nil {
		t.Fatal(err)
	}
	id, err := e.AcquireRuleSet(appLabels(1))
	if err != nil {
		t.Fatal(err)
	}
	e.UpsertObject(o)
	e.Changes()
	rs, _ := e.RuleSet(id)
	for _, cidr := range e.CIDRChanges() {
		want := map[string]string{"10.0.0.0/32": "demo/large egress[1]", "10.0.0.1/32": "demo/large egress[0]"}[cidr.Prefix.String()]
		got := e.Origin(Decide(rs, datapath.Egress, Peer{Identity: cidr.Number}, api.TCP, 80).Origin)
		if want != "" && got != want {
			t.Errorf("%s is allowed by %q, want %q", cidr.Prefix, got, want)
		}
	}
}

// Many rules about the same peers and ports are one entry for each peer.
func TestManyRulesOfOneSelector(t *testing.T) {
	const identities = 2000
	e, err := New(Config{Cluster: "east"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range identities {
		if err := e.UpsertIdentity(identity.Number(65536+i), "east", appLabels(i)); err != nil {
			t.Fatal(err)
		}
	}
	id, err := e.AcquireRuleSet(appLabels(-1))
	if err != nil {
		t.Fatal(err)
	}
	o := api.Object{Kind: api.KindRuleArray, Namespace: api.ClusterWide, Name: "same", Source: "x", Rules: []api.Rule{{Path: "[0]"}}}
	for i := range 5000 {
		o.Rules[0].Parts = append(o.Rules[0].Parts, api.Part{Path: fmt.Sprintf("egress[%d]", i), Direction: datapath.Egress,
			Peers: api.Peers{Entities: []api.Entity{api.EntityCluster}}})
	}
	o.Rules[0].DefaultDeny[datapath.Egress] = true
	if all := allocated(func() { e.UpsertObject(o); e.Changes() }); all > 64<<20 {
		t.Errorf("%d MiB allocated", all>>20)
	}
	if rs, _ := e.RuleSet(id); len(rs.Entries) < identities || len(rs.Entries) > identities+10 {
		t.Errorf("%d entries", len(rs.Entries))
	}
}

// Names of ports are asked for in so many ipBlocks and no more.
func TestCheckNamesInBlocks(t *testing.T) {
	for blocks, problem := range map[int]string{
		500: "",
		501: "NetworkPolicy demo/names: asks 1002 times, over all its ipBlocks of egress and the names of ports beside each, ",
	} {
		text := "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: names, namespace: demo}\nspec:\n  podSelector: {}\n  egress:\n  - ports: [{port: web}, {port: dns}, {port: 80}]\n    to:\n"
		for i := range blocks {
			text += "    - ipBlock: {cidr: " + address(i) + "/32}\n"
		}
		objects, err := api.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if err = Check(objects...); problem == "" && err != nil || problem != "" && (err == nil || !strings.Contains(err.Error(), problem)) {
			t.Errorf("%d blocks: got %v, want %q", blocks, err, problem)
		}
	}
}

// What is a product by its nature is refused, with the object's name, the number
// and the bound.
func TestCheckSize(t *testing.T) {
	const head = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: large, namespace: demo}\nspec:\n  endpointSelector: {}\n  egress:\n"
	for _, c := range []struct {
		name, rule string
		rules      int
		problem    string
	}{
		{"a port each over all", "{toCIDRSet: [{cidr: 10.0.0.0/8, except: [%[1]s/32]}], toPorts: [{ports: [{port: %[2]d, protocol: TCP}]}]}", 300,
			"demo/large: its prefixes become 90300 entries for each kind of endpoint, more than 65536: "},
		{"a port each over few", "{toCIDRSet: [{cidr: 10.0.0.0/8, except: [%[1]s/32]}], toPorts: [{ports: [{port: %[2]d, protocol: TCP}]}]}", 100, ""},
		{"a port each for an address each", "{toCIDR: [%[1]s/32], toPorts: [{ports: [{port: %[2]d, protocol: TCP}]}]}", 5000, ""},
		{"a range over many", "{toCIDR: [%[1]s/32, 10.0.0.0/8], toPorts: [{ports: [{port: 1, endPort: 65534, protocol: TCP}]}]}", 5000, "more than 65536"},
		{"all but one", "{toEndpoints: [{matchExpressions: [{key: app, operator: NotIn, values: [a%[2]d]}]}]}", 1001,
			"demo/large: 1001 different peer selectors ask for no label's value, or exclude some, and so may select nearly everybody each; more than 1000: "},
		{"many that exclude", "{toEndpoints: [{matchExpressions: [{key: app, operator: NotIn, values: [a%[2]d]}]}]}", 1000, ""},
		{"one each", "{toEndpoints: [{matchLabels: {app: a%[2]d}}]}", 5000, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b strings.Builder
			b.WriteString(head)
			for i := range c.rules {
				fmt.Fprintf(&b, "  - "+c.rule+"%[3]s\n", address(i), i+1, "")
			}
			objects, err := api.Parse([]byte(b.String()))
			if err != nil {
				t.Fatal(err)
			}
			err = Check(objects...)
			if c.problem == "" && err != nil || c.problem != "" && (err == nil || !strings.Contains(err.Error(), c.problem)) {
				t.Errorf("got %v, want %q", err, c.problem)
			}
		})
	}
}
