// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
)

func parse(t *testing.T, source string) []api.Object {
	t.Helper()
	objects, err := api.Parse([]byte(source))
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func mesh(t *testing.T) []Identity {
	t.Helper()
	var out []Identity
	for i, e := range []End{workload(t, "east", "web", ""), workload(t, "east", "client", ""), workload(t, "west", "probe", "")} {
		out = append(out, Identity{Number: identity.Number(70000 + i), Cluster: e.cluster(), Labels: e.Labels})
	}
	return out
}

func TestPairs(t *testing.T) {
	head := "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: web, namespace: demo}\nspec:\n  endpointSelector: {matchLabels: {app: web}}\n"
	before := parse(t, head+`  ingress: [{fromEndpoints: [{matchLabels: {app: client}}], toPorts: [{ports: [{port: "80", protocol: TCP}]}]}]`)
	after := parse(t, head+`  ingress: [{fromEndpoints: [{matchLabels: {app: client}}], toPorts: [{ports: [{port: "81", protocol: TCP}]}]}, {fromCIDR: [192.0.2.0/24], toPorts: [{ports: [{port: "80", protocol: TCP}]}]}]`)
	pairs, err := Change{Cluster: "east", Before: before, After: after, Identities: mesh(t)}.Pairs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range pairs {
		app, _ := p.Self.Get("cni", "app")
		got = append(got, fmt.Sprintf("%s %s %s +%v -%v", p.Direction, app, p.Peer, p.Opened, p.Closed))
	}
	want := []string{
		"ingress web cni:app=client,mesh:cluster=east,mesh:namespace=demo +[81/tcp] -[80/tcp]",
		"ingress web 192.0.2.0/24 +[80/tcp] -[]",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	pairs, err = Change{Cluster: "east", After: parse(t, head+"  ingress: [{}]"), Identities: mesh(t)}.Pairs(t.Context())
	if err != nil || len(pairs) != 5 { // world, remote-node and three identities; the host stays
		t.Errorf("a default deny closes %d pairs, error %v: %+v", len(pairs), err, pairs)
	}
	block := parse(t, "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: b, namespace: demo}\nspec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 10.1.0.0/16}}]}]}\n")
	ids := mesh(t)
	ids[1].Addrs, ids[2].Addrs = []netip.Addr{netip.MustParseAddr("10.1.0.2")}, []netip.Addr{netip.MustParseAddr("10.2.0.2"), netip.MustParseAddr("10.1.9.9")}
	pairs, err = Change{Cluster: "east", After: block, Identities: ids}.Pairs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got = nil
	for _, p := range pairs {
		got = append(got, fmt.Sprint(p.PeerText(0), p.Closed))
	}
	want = []string{"remote-node except 10.1.0.0/16[everything]", ids[0].Labels.String() + "[everything]", ids[2].Labels.String() + " at 10.2.0.2[everything]",
		"world except 10.1.0.0/16[everything]"}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if pairs, err = (Change{Cluster: "east", Before: before, After: before, Identities: mesh(t)}).Pairs(t.Context()); err != nil || len(pairs) != 0 {
		t.Errorf("no change: %+v, error %v", pairs, err)
	}
}

// What an edit of a range, a prefix or its exceptions opens and closes is told
// exactly, in both directions of the edit, for pods, nodes and outside.
func TestPairsOfEdits(t *testing.T) {
	const cnp = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: demo}\nspec: {endpointSelector: {matchLabels: {app: web}}, ingress: [%s]}\n"
	const np = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: demo}\nspec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: [{from: [%s]}]}\n"
	port := func(p string) string {
		return fmt.Sprintf(cnp, "{fromEndpoints: [{matchLabels: {app: client}}], toPorts: [{ports: [{"+p+", protocol: TCP}]}]}")
	}
	set := func(s string) string { return fmt.Sprintf(cnp, "{fromCIDRSet: [{"+s+"}]}") }
	block := func(s string) string { return fmt.Sprintf(np, "{ipBlock: {"+s+"}}") }
	nobody := fmt.Sprintf(np, "{podSelector: {matchLabels: {app: nobody}}}")
	client := mesh(t)[1].Labels.String()
	for name, c := range map[string]struct{ before, after, opened, closed string }{
		"a port becomes a range":      {port(`port: "8080"`), port(`port: "8080", endPort: 8095`), client + " 8081-8095/tcp", ""},
		"a range becomes a port":      {port(`port: "4096", endPort: 8191`), port(`port: "8080"`), "", client + " 4096-8079/tcp 8081-8191/tcp"},
		"a wider prefix":              {set("cidr: 172.30.0.0/24"), set("cidr: 172.30.0.0/16"), "172.30.0.0/16 except 172.30.0.0/24 everything", ""},
		"an exception":                {set("cidr: 172.30.0.0/16"), set("cidr: 172.30.0.0/16, except: [172.30.1.0/24]"), "", "172.30.1.0/24 everything"},
		"an exception of an ipBlock":  {block("cidr: 10.1.1.0/24"), block("cidr: 10.1.1.0/24, except: [10.1.1.4/32]"), "", client + " at 10.1.1.4 everything"},
		"an ipBlock around nodes":     {nobody, block("cidr: 192.0.2.0/24"), "remote-node at 192.0.2.1 everything; 192.0.2.0/24 everything", ""},
		"an ipBlock of a pod":         {nobody, block("cidr: 10.1.1.4/32"), client + " at 10.1.1.4 everything", ""},
		"an ipBlock of nobody's":      {nobody, block("cidr: 10.1.2.0/24"), "", ""},
		"no policy, then all of IPv4": {"", block("cidr: 0.0.0.0/0"), "", client + " at fd00::4 everything; remote-node at 2001:db8::1 everything; world in ::/0 everything; " + mesh(t)[0].Labels.String() + " everything; " + mesh(t)[2].Labels.String() + " everything"},
	} {
		t.Run(name, func(t *testing.T) {
			ids := mesh(t)
			ids[1].Addrs = []netip.Addr{netip.MustParseAddr("10.1.1.4"), netip.MustParseAddr("10.1.1.5"), netip.MustParseAddr("fd00::4")}
			nodes := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
			change := Change{Cluster: "east", Identities: ids, HostAddrs: nodes, NodeAddrs: nodes, Inside: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}}
			if c.before != "" {
				change.Before = parse(t, c.before)
			}
			if c.after != "" {
				change.After = parse(t, c.after)
			}
			check := func(change Change, opened, closed string) {
				t.Helper()
				pairs, err := change.Pairs(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				texts := func(of func(Pair) []string) string {
					var out []string
					for _, p := range pairs {
						if list := of(p); len(list) > 0 {
							out = append(out, p.PeerText(0)+" "+strings.Join(list, " "))
						}
					}
					slices.Sort(out)
					return strings.Join(out, "; ")
				}
				sorted := func(s string) string {
					list := strings.Split(s, "; ")
					slices.Sort(list)
					return strings.Join(list, "; ")
				}
				if got := texts(func(p Pair) []string { return p.Opened }); got != sorted(opened) {
					t.Errorf("opened %q, want %q", got, sorted(opened))
				}
				if got := texts(func(p Pair) []string { return p.Closed }); got != sorted(closed) {
					t.Errorf("closed %q, want %q", got, sorted(closed))
				}
			}
			check(change, c.opened, c.closed)
			change.Before, change.After = change.After, change.Before
			check(change, c.closed, c.opened)
		})
	}
}

// A port without a number of any protocol means those that have ports: what has
// none is closed by it and stays closed to it, and is told.
func TestPairsOfOtherProtocols(t *testing.T) {
	const head = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: demo}\nspec: {endpointSelector: {matchLabels: {app: web}}, "
	const ports = `toPorts: [{ports: [{port: "0", protocol: ANY}]}]`
	const echoes = "icmps: [{fields: [{type: 8}, {type: 128, family: IPv6}]}]"
	const all = "ingress: [{fromEntities: [all], " + ports + "}, {fromEntities: [all], " + echoes + "}]"
	for name, c := range map[string]struct{ before, after, opened, closed string }{
		"all that has ports, and echoes":      {"", all + "}", "[]", "[other protocols]"},
		"and then all":                        {all + "}", "ingress: [{fromEntities: [all]}]}", "[other protocols]", "[]"},
		"nothing":                             {"", "ingress: [{}]}", "[]", "[everything]"},
		"nothing but other protocols is left": {"ingress: [{fromEntities: [all]}]}", "ingress: [{fromEntities: [all]}], ingressDeny: [{fromEntities: [all], " + ports + "}, {fromEntities: [all], " + echoes + "}]}", "[]", "[all ports of tcp all ports of udp all ports of sctp icmp type 8 icmpv6 type 128]"},
	} {
		change := Change{Cluster: "east", Identities: mesh(t)}
		if c.before != "" {
			change.Before = parse(t, head+c.before)
		}
		change.After = parse(t, head+c.after)
		pairs, err := change.Pairs(t.Context())
		if err != nil || len(pairs) != 5 { // world, remote-node and three identities
			t.Errorf("%s: %d pairs: %+v, %v", name, len(pairs), pairs, err)
		}
		for _, p := range pairs {
			if opened, closed := fmt.Sprint(p.Opened), fmt.Sprint(p.Closed); opened != c.opened || closed != c.closed {
				t.Errorf("%s: %s: opened %s, closed %s; want %s, %s", name, p.Peer, opened, closed, c.opened, c.closed)
			}
		}
	}
}

func TestPeerText(t *testing.T) {
	p := Pair{Peer: "x", In: netip.MustParsePrefix("::/0")}
	for i := range byte(4) {
		a := netip.AddrFrom4([4]byte{10, 0, 0, i})
		p.At, p.Except = append(p.At, a), append(p.Except, netip.PrefixFrom(a, 32))
	}
	want := "x in ::/0 at 10.0.0.0, 10.0.0.1, 10.0.0.2 and 1 more except 10.0.0.0/32, 10.0.0.1/32, 10.0.0.2/32 and 1 more"
	if got := p.PeerText(3); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := p.PeerText(0); strings.Contains(got, "more") || strings.Count(got, ",") != 6 {
		t.Errorf("%q leaves something out", got)
	}
}

// A change that nobody waits for any more is not gone on with.
func TestPairsEnd(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, c := range map[string]Change{"objects": {After: parse(t, rules)}, "identities": {Identities: mesh(t)}} {
		c.Cluster = "east"
		if pairs, err := c.Pairs(ctx); !errors.Is(err, context.Canceled) || pairs != nil {
			t.Errorf("%s: %d pairs, error %v", name, len(pairs), err)
		}
	}
}

// What opens and closes depends on how the nodes read and enforce the objects.
func TestPairsFollowScopeAndMode(t *testing.T) {
	rule := parse(t, "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: web, namespace: demo}\n"+
		"spec: {endpointSelector: {matchLabels: {app: web}}, ingress: [{fromEndpoints: [{matchLabels: {app: probe}}]}]}\n")
	probe := mesh(t)[2].Labels.String() // west's
	for _, c := range []struct {
		scope          policy.Scope
		mode           policy.Mode
		opened, closed int
		probe          string // what becomes of it
	}{
		{policy.ScopeLocal, policy.ModeDefault, 0, 5, "closed"},
		{policy.ScopeMesh, policy.ModeDefault, 0, 4, ""},
		{policy.ScopeLocal, policy.ModeAlways, 0, 0, ""},
		{policy.ScopeMesh, policy.ModeAlways, 1, 0, "opened"},
		{policy.ScopeMesh, policy.ModeNever, 0, 0, ""},
	} {
		pairs, err := Change{Cluster: "east", Scope: c.scope, Mode: c.mode, After: rule, Identities: mesh(t)}.Pairs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		opened, closed, what := 0, 0, ""
		for _, p := range pairs {
			opened, closed = opened+len(p.Opened), closed+len(p.Closed)
			if p.Peer == probe {
				what = map[bool]string{true: "opened", false: "closed"}[len(p.Opened) > 0]
			}
		}
		if opened != c.opened || closed != c.closed || what != c.probe {
			t.Errorf("scope %s, mode %s: %d opened, %d closed, west's probe %q; want %+v", c.scope, c.mode, opened, closed, what, c)
		}
	}
}

func TestPairsNameICMPTypes(t *testing.T) {
	rule := func(icmps string) []api.Object {
		return parse(t, "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: web, namespace: demo}\n"+
			"spec: {endpointSelector: {matchLabels: {app: web}}, ingress: [{fromEndpoints: [{matchLabels: {app: client}}], icmps: [{fields: ["+icmps+"]}]}]}\n")
	}
	pairs, err := Change{Cluster: "east", Identities: mesh(t), Before: rule("{type: 8}"), After: rule("{type: 128, family: IPv6}")}.Pairs(t.Context())
	if err != nil || len(pairs) != 1 || fmt.Sprint(pairs[0].Opened, pairs[0].Closed) != "[icmpv6 type 128] [icmp type 8]" {
		t.Errorf("%+v, error %v", pairs, err)
	}
}

// Only what policy is asked about opens or closes: of ICMP the echo requests, and
// whatever has no ports.
func TestPairsAreOfWhatIsJudged(t *testing.T) {
	icmps := func(fields string) []api.Object {
		return parse(t, "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: web, namespace: demo}\n"+
			"spec: {endpointSelector: {matchLabels: {app: web}}, ingress: [{fromEndpoints: [{matchLabels: {app: client}}], icmps: [{fields: ["+fields+"]}]}]}\n")
	}
	const ports = "all ports of tcp all ports of udp all ports of sctp"
	for _, c := range []struct{ fields, closed string }{
		{"{type: 8}", ports + " icmpv6 type 128 other protocols"},
		{"{type: 128, family: IPv6}", ports + " icmp type 8 other protocols"},
		{"{type: 8}, {type: 128, family: IPv6}", ports + " other protocols"},
	} {
		pairs, err := Change{Cluster: "east", Identities: mesh(t), After: icmps(c.fields)}.Pairs(t.Context())
		i := slices.IndexFunc(pairs, func(p Pair) bool { return strings.Contains(p.Peer, "app=client") })
		if err != nil || i < 0 || strings.Join(pairs[i].Closed, " ") != c.closed {
			t.Errorf("%s: %+v, error %v, want %q", c.fields, pairs, err, c.closed)
		}
		j := slices.IndexFunc(pairs, func(p Pair) bool { return !strings.Contains(p.Peer, "app=client") })
		if j < 0 || strings.Join(pairs[j].Closed, " ") != "everything" {
			t.Errorf("%s: %+v, want everything closed to others", c.fields, pairs)
		}
	}
}

func TestNames(t *testing.T) {
	for port, want := range map[string]bool{`"80"`: false, "http": true} {
		objects := parse(t, "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: web, namespace: demo}\n"+
			"spec: {endpointSelector: {}, ingress: [{toPorts: [{ports: [{port: "+port+"}]}]}]}\n")
		if Names(objects) != want {
			t.Errorf("port %s is a name: %v", port, !want)
		}
	}
}

func TestLint(t *testing.T) {
	objects := parse(t, `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: demo}
specs:
- endpointSelector: {matchLabels: {app: web}}
  ingress:
  - fromEndpoints: [{matchLabels: {app: client}}]
  - fromEndpoints: [{matchLabels: {app: probe}}]
  - fromEndpoints: [{matchLabels: {app: nobody}}]
  - fromCIDR: [0.0.0.0/0]
- endpointSelector: {matchLabels: {app: wbe}}
  egressDeny: [{toEntities: [all]}]
- endpointSelector: {matchLabels: {app: web}}
  egress:
  - toServices: [{k8sService: {serviceName: echo, namespace: demo}}]
  - toServices: [{k8sService: {serviceName: empty, namespace: demo}}]
  - toServices: [{k8sService: {serviceName: absent, namespace: demo}}]
  - toCIDR: [192.0.2.0/24]
    toPorts: [{ports: [{port: "80", protocol: TCP}]}]
  - toCIDR: [192.0.2.0/24]
    toPorts: [{ports: [{port: "81", protocol: TCP}]}]
  egressDeny:
  - toCIDR: [192.0.2.0/24]
    toPorts: [{ports: [{port: "80", protocol: TCP}]}]
  - {}
`)
	var got []string
	around := Surroundings{Cluster: "east", Identities: mesh(t), Services: map[string]bool{"demo/echo": true, "demo/empty": false}}
	for _, f := range Lint(around, objects) {
		got = append(got, f.Path+": "+f.Text)
	}
	want := []string{
		"specs[0].ingress[1]: selects no workload of cluster east, but some of west",
		"specs[0].ingress[2]: selects no workload now: app=nobody",
		"specs[0].ingress[3]: 0.0.0.0/0 is the world outside",
		"specs[1]: selects no workload of cluster east now: app=wbe",
		"specs[1].egressDeny[0]: denies everything",
		"specs[2].egress[3]: allows nothing: egressDeny[0] denies all of it",
		"specs[2].egress[1]: service demo/empty has no backend now",
		"specs[2].egress[2]: there is no service demo/absent in cluster east",
		"specs[2].egressDeny[1]: denies nothing: it names no peer; to deny everybody write toEntities: [all]",
	}
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || !strings.HasPrefix(got[i], want[i]) {
			t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	// Where selectors mean the mesh, west's probe is meant.
	around.Scope = policy.ScopeMesh
	for _, f := range Lint(around, objects) {
		if f.Path == "specs[0].ingress[1]" {
			t.Errorf("with scope mesh: %s", f)
		}
	}
}
