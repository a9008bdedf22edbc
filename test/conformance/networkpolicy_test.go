// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/mattfenwick/cyclonus/pkg/matcher"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8slabels "k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
)

// pod is a workload, or an address outside the cluster when it has no namespace.
type pod struct {
	ip        string
	namespace string
	labels    map[string]string
	of        map[string]string  // the namespace's labels
	ports     []policy.NamedPort // the same for pods with the same labels
	id        identity.Number
}

// generator makes random policies and pods out of few values, so that everything
// overlaps.
type generator struct{ *rand.Rand }

func pick[T any](g generator, of ...T) T { return of[g.IntN(len(of))] }

func (g generator) selector() *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	for range g.IntN(3) {
		key := pick(g, "app", "tier", "namespace")
		if g.IntN(2) == 0 {
			if s.MatchLabels == nil {
				s.MatchLabels = map[string]string{}
			}
			s.MatchLabels[key] = pick(g, "a", "b", "c")
			continue
		}
		e := g.expression(key, "a", "b", "c")
		if e.Operator == metav1.LabelSelectorOpNotIn {
			e.Key = "app" // see pods
		}
		s.MatchExpressions = append(s.MatchExpressions, e)
	}
	return s
}

func (g generator) expression(key string, values ...string) metav1.LabelSelectorRequirement {
	e := metav1.LabelSelectorRequirement{Key: key, Operator: pick(g, metav1.LabelSelectorOpIn,
		metav1.LabelSelectorOpNotIn, metav1.LabelSelectorOpExists, metav1.LabelSelectorOpDoesNotExist)}
	if e.Operator == metav1.LabelSelectorOpIn || e.Operator == metav1.LabelSelectorOpNotIn {
		for range 1 + g.IntN(2) {
			e.Values = append(e.Values, pick(g, values...))
		}
	}
	return e
}

// namespaceLabels are labels of the namespaces x, y and z. All have team, for the
// reason that pods have app.
func (g generator) namespaceLabels() map[string]map[string]string {
	out := map[string]map[string]string{}
	for _, name := range []string{"x", "y", "z"} {
		out[name] = map[string]string{"kubernetes.io/metadata.name": name, "team": pick(g, "a", "b", "c")}
		if g.IntN(2) == 0 {
			out[name]["app"] = pick(g, "a", "b", "c") // pods have that, too
		}
	}
	return out
}

func (g generator) namespaces() *metav1.LabelSelector {
	const name = "kubernetes.io/metadata.name"
	switch g.IntN(6) {
	case 3:
		return &metav1.LabelSelector{MatchLabels: map[string]string{pick(g, "team", "app"): pick(g, "a", "b")}}
	case 4, 5:
		e := g.expression(pick(g, "team", "app"), "a", "b", "c")
		if e.Operator == metav1.LabelSelectorOpNotIn {
			e.Key = "team"
		}
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{e, g.expression(name, "x", "y", "z")}}
	case 0:
		return &metav1.LabelSelector{}
	case 1:
		return &metav1.LabelSelector{MatchLabels: map[string]string{name: pick(g, "x", "z")}}
	}
	return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{g.expression(name, "x", "z")}}
}

func (g generator) block() *networkingv1.IPBlock {
	all := []string{"0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/29", "10.0.0.2/32", "10.0.0.4/30", "192.0.2.0/24"}
	b := &networkingv1.IPBlock{CIDR: pick(g, all...)}
	for _, e := range all {
		outer, inner := netip.MustParsePrefix(b.CIDR), netip.MustParsePrefix(e)
		if g.IntN(3) == 0 && inner.Bits() > outer.Bits() && outer.Contains(inner.Addr()) {
			b.Except = append(b.Except, e)
		}
	}
	return b
}

func (g generator) peers() (out []networkingv1.NetworkPolicyPeer) {
	for range g.IntN(3) {
		p := networkingv1.NetworkPolicyPeer{}
		switch g.IntN(4) {
		case 0:
			p.PodSelector = g.selector()
		case 1:
			p.NamespaceSelector = g.namespaces()
		case 2:
			p.PodSelector, p.NamespaceSelector = g.selector(), g.namespaces()
		case 3:
			p.IPBlock = g.block()
		}
		out = append(out, p)
	}
	return out
}

func (g generator) ports() (out []networkingv1.NetworkPolicyPort) {
	for range g.IntN(3) {
		p := networkingv1.NetworkPolicyPort{}
		if g.IntN(4) > 0 {
			protocol := pick(g, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)
			p.Protocol = &protocol
		}
		switch g.IntN(4) {
		case 0:
			number := intstr.FromInt32(int32(1 + g.IntN(90)))
			end := number.IntVal + int32(g.IntN(100))
			p.Port, p.EndPort = &number, &end
		case 1:
			number := pick(g, intstr.FromInt32(80), intstr.FromInt32(81))
			p.Port = &number
		case 2:
			name := pick(g, intstr.FromString("web"), intstr.FromString("dns"))
			p.Port = &name
		}
		out = append(out, p)
	}
	return out
}

func (g generator) policy(name string) *networkingv1.NetworkPolicy {
	p := &networkingv1.NetworkPolicy{
		TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: pick(g, "x", "y", "z")},
	}
	p.Spec.PodSelector = *g.selector()
	p.Spec.PolicyTypes = pick(g, nil, []networkingv1.PolicyType{"Ingress"}, []networkingv1.PolicyType{"Egress"},
		[]networkingv1.PolicyType{"Ingress", "Egress"})
	for range g.IntN(3) {
		p.Spec.Ingress = append(p.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: g.peers(), Ports: g.ports()})
	}
	for range g.IntN(3) {
		p.Spec.Egress = append(p.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: g.peers(), Ports: g.ports()})
	}
	return p
}

// pods all have the label app: Cyclonus takes NotIn for unmet where the key is
// absent, Kubernetes for met. TestSelectorsAgreeWithKubernetes has that case.
func (g generator) pods() (out []pod) {
	ids := map[string]pod{}
	namespaces := g.namespaceLabels()
	for i := range 8 {
		p := pod{ip: fmt.Sprintf("10.0.0.%d", i+1), namespace: pick(g, "x", "y", "z"), labels: map[string]string{}}
		for _, key := range []string{"app", "tier", "namespace"} {
			if key == "app" || g.IntN(3) > 0 {
				p.labels[key] = pick(g, "a", "b", "c")
			}
		}
		p.of = namespaces[p.namespace]
		name := fmt.Sprint(p.namespace, p.labels)
		if same, ok := ids[name]; ok {
			p.id, p.ports = same.id, same.ports
		} else {
			p.id = identity.Number(65536 + i)
			if g.IntN(2) == 0 {
				p.ports = []policy.NamedPort{{Name: pick(g, "web", "dns"), Protocol: pick(g, api.TCP, api.UDP), Port: pick[uint16](g, 80, 90)}}
			}
			ids[name] = p
		}
		out = append(out, p)
	}
	return append(out, pod{ip: "10.9.9.9"}, pod{ip: "192.0.2.1"}, pod{ip: "198.51.100.1"})
}

func (p pod) set() labels.Set {
	ls := []labels.Label{
		{Source: labels.Mesh, Key: labels.ClusterKey, Value: "east"},
		{Source: labels.Mesh, Key: labels.NamespaceKey, Value: p.namespace},
	}
	for k, v := range p.of {
		if k != "kubernetes.io/metadata.name" { // an agent leaves it out
			ls = append(ls, labels.Label{Source: labels.Namespace, Key: k, Value: v})
		}
	}
	for k, v := range p.labels {
		ls = append(ls, labels.Label{Source: labels.Kubernetes, Key: k, Value: v})
	}
	return labels.New(ls...)
}

func (p pod) peer() *matcher.TrafficPeer {
	t := &matcher.TrafficPeer{IP: p.ip}
	if p.namespace != "" {
		t.Internal = &matcher.InternalPeer{PodLabels: p.labels, Namespace: p.namespace, NamespaceLabels: p.of}
	}
	return t
}

// ours is Hawser's view of the same policies and pods.
type ours struct {
	engine *policy.Engine
	blocks map[netip.Prefix]identity.Number
}

func newOurs(t *testing.T, policies []*networkingv1.NetworkPolicy, pods []pod) ours {
	t.Helper()
	e, err := policy.New(policy.Config{Cluster: "east"})
	if err != nil {
		t.Fatal(err)
	}
	o := ours{e, map[netip.Prefix]identity.Number{}}
	for _, p := range policies {
		text, err := yaml.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		objects, err := api.Parse([]byte(strings.ReplaceAll(string(text), "  creationTimestamp: null\n", "")))
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		e.UpsertObject(objects[0])
	}
	for _, p := range pods {
		if p.namespace == "" {
			continue
		}
		if err := e.UpsertIdentity(p.id, "east", p.set()); err != nil {
			t.Fatal(err)
		}
		e.SetNamedPorts(p.id, p.ports)
		e.SetAddressPorts("east", netip.MustParseAddr(p.ip), p.ports)
	}
	for _, c := range e.CIDRChanges() {
		o.blocks[c.Prefix] = c.Number
	}
	return o
}

func (o ours) peer(p pod) policy.Peer {
	out := policy.Peer{Identity: p.id}
	if p.namespace == "" {
		out.Identity = identity.World
	}
	longest := -1
	for prefix, n := range o.blocks {
		if prefix.Contains(netip.MustParseAddr(p.ip)) && prefix.Bits() > longest {
			longest, out.Block = prefix.Bits(), n
		}
	}
	return out
}

func (o ours) allows(t *testing.T, d datapath.Direction, self, peer pod, proto uint8, port uint16) bool {
	t.Helper()
	id, err := o.engine.AcquireRuleSet(self.set(), self.ports...)
	if err != nil {
		t.Fatal(err)
	}
	o.engine.Changes()
	rs, _ := o.engine.RuleSet(id)
	return policy.Decide(rs, d, o.peer(peer), proto, port).Allow
}

// defaulted fills in the policy types, as an API server does. Ours are not.
func defaulted(in []*networkingv1.NetworkPolicy) (out []*networkingv1.NetworkPolicy) {
	for _, p := range in {
		p = p.DeepCopy()
		if len(p.Spec.PolicyTypes) == 0 {
			p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
			if len(p.Spec.Egress) > 0 {
				p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
			}
		}
		out = append(out, p)
	}
	return out
}

// TestNetworkPolicyAgreesWithCyclonus compares both readings of random policies
// for every pair of pods, in both directions.
func TestNetworkPolicyAgreesWithCyclonus(t *testing.T) {
	compared := 0
	for seed := range uint64(150) {
		g := generator{rand.New(rand.NewPCG(seed, 3))}
		var policies []*networkingv1.NetworkPolicy
		for i := range 1 + g.IntN(5) {
			policies = append(policies, g.policy(fmt.Sprintf("p%d", i)))
		}
		pods := g.pods()
		theirs := matcher.BuildNetworkPolicies(false, defaulted(policies))
		mine := newOurs(t, policies, pods)
		for range 400 {
			src, dst := pick(g, pods...), pick(g, pods...)
			if src.ip == dst.ip {
				continue
			}
			proto, port := pick(g, api.TCP, api.UDP, api.SCTP), pick[uint16](g, 1, 64, 80, 81, 90, 150)
			traffic := &matcher.Traffic{Source: src.peer(), Destination: dst.peer(), ResolvedPort: int(port),
				Protocol: map[uint8]corev1.Protocol{api.TCP: "TCP", api.UDP: "UDP", api.SCTP: "SCTP"}[proto]}
			if i := slices.IndexFunc(dst.ports, func(n policy.NamedPort) bool { return n.Port == port && n.Protocol == proto }); i >= 0 {
				traffic.ResolvedPortName = dst.ports[i].Name
			}
			for _, d := range []datapath.Direction{datapath.Ingress, datapath.Egress} {
				self, peer := dst, src
				if d == datapath.Egress {
					self, peer = src, dst
				}
				if self.namespace == "" {
					continue
				}
				compared++
				want := theirs.IsIngressOrEgressAllowed(traffic, d == datapath.Ingress).IsAllowed()
				if got := mine.allows(t, d, self, peer, proto, port); got != want {
					text, _ := yaml.Marshal(policies)
					t.Fatalf("seed %d: %s %+v → %+v %d/%d: ours %v, theirs %v\n%s", seed, d, src, dst, proto, port, got, want, text)
				}
			}
		}
	}
	t.Logf("%d verdicts compared", compared)
}

// TestSelectorsAgreeWithKubernetes compares what selectors select with
// Kubernetes' own code.
func TestSelectorsAgreeWithKubernetes(t *testing.T) {
	for seed := range uint64(2000) {
		g := generator{rand.New(rand.NewPCG(seed, 4))}
		s := &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
			g.expression(pick(g, "app", "tier", "namespace"), "a", "b", "c"), g.expression("app", "a", "b", "c")}}
		theirs, err := metav1.LabelSelectorAsSelector(s)
		if err != nil {
			t.Fatal(err)
		}
		o := &networkingv1.NetworkPolicy{
			TypeMeta:   metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"},
			ObjectMeta: metav1.ObjectMeta{Name: "p", Namespace: "x"},
			Spec:       networkingv1.NetworkPolicySpec{PodSelector: *s},
		}
		text, err := yaml.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		objects, err := api.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		ls := map[string]string{}
		for _, key := range []string{"app", "tier", "namespace"} {
			if g.IntN(2) == 0 {
				ls[key] = pick(g, "a", "b", "c")
			}
		}
		p := pod{namespace: "x", labels: ls}
		if got, want := objects[0].Rules[0].Endpoints.Matches(p.set()), theirs.Matches(k8slabels.Set(ls)); got != want {
			t.Fatalf("%s on %v: ours %v, theirs %v", objects[0].Rules[0].Endpoints, ls, got, want)
		}
	}
}
