// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
)

// hints says what comes closest to allowing what was denied, and the smallest
// change that would.
func (q Question) hints(a answer, d datapath.Direction, self, peer End) ([]string, error) {
	if !a.decision.Default {
		return []string{"a deny beats every allow: take this out of " + a.engine.Origin(a.decision.Origin)}, nil
	}
	if q.Scope != policy.ScopeMesh && peer.cluster() != "" && peer.cluster() != q.Cluster {
		wider, err := q.ask(policy.ScopeMesh, d, self, peer)
		if err != nil {
			return nil, err
		}
		if wider.decision.Allow && !wider.decision.Default {
			return []string{
				fmt.Sprintf("%s allows it in cluster %s only: a selector without mesh:cluster means the local cluster",
					wider.engine.Origin(wider.decision.Origin), q.Cluster),
				fmt.Sprintf("smallest change: add  mesh:cluster: %s  to its matchLabels", peer.cluster()),
			}, nil
		}
	}
	var out []string
	if name, _ := peer.Reserved.Reserved(); name != "" && peer.cluster() == "" && !api.Entity(name).Accepted() {
		return []string{"no rule can name " + name + ": that entity is not supported"}, nil
	}
	if other := a.otherPorts(d); other != "" {
		out = append(out, other)
	}
	return append(out, "to allow it, add to a policy that selects "+self.Name+": "+q.allow(d, peer)), nil
}

// otherPorts names a rule that allows the peer elsewhere.
func (a answer) otherPorts(d datapath.Direction) string {
	var best string
	for k, e := range a.set.Entries {
		if k.Direction != d || e.Deny || k.Protocol == 0 || k.Identity != 0 && k.Identity != a.peer.Identity && k.Identity != a.peer.Block {
			continue
		}
		text := fmt.Sprintf("%s allows the same peer on %s", a.engine.Origin(e.Origin), portText(k))
		if best == "" || text < best {
			best = text
		}
	}
	return best
}

func portText(k datapath.PolicyKey) string {
	proto := ProtocolName(k.Protocol)
	switch {
	case isICMP(k.Protocol):
		return fmt.Sprintf("%s type %d", proto, k.Port&0xFF)
	case k.Port == 0 && k.PortWild == 0:
		return "all ports of " + proto
	case k.PortWild != 0:
		return fmt.Sprintf("%d-%d/%s", k.Port, uint32(k.Port)+(1<<k.PortWild)-1, proto)
	}
	return fmt.Sprintf("%d/%s", k.Port, proto)
}

func isICMP(proto uint8) bool { return proto == api.ICMP || proto == api.ICMPv6 }

// ProtocolName is tcp, udp, … or the number.
func ProtocolName(proto uint8) string {
	switch proto {
	case api.TCP:
		return "tcp"
	case api.UDP:
		return "udp"
	case api.SCTP:
		return "sctp"
	case api.ICMP:
		return "icmp"
	case api.ICMPv6:
		return "icmpv6"
	}
	return fmt.Sprint(proto)
}

// allow is a rule that allows exactly what was asked, in one line of YAML.
func (q Question) allow(d datapath.Direction, peer End) string {
	section, from := "ingress", "from"
	if d == datapath.Egress {
		section, from = "egress", "to"
	}
	var who string
	switch name, _ := peer.Reserved.Reserved(); {
	case peer.cluster() != "":
		who = fmt.Sprintf("%sEndpoints: [{matchLabels: {%s}}]", from, q.matchLabels(peer.Labels))
	case peer.Reserved != 0 && peer.Reserved != identity.World:
		who = fmt.Sprintf("%sEntities: [%s]", from, name)
	case peer.Addr.IsValid():
		who = fmt.Sprintf("%sCIDR: [%s/%d]", from, peer.Addr, peer.Addr.BitLen())
	default:
		who = fmt.Sprintf("%sEntities: [world]", from)
	}
	ports := ""
	switch q.Protocol {
	case api.TCP, api.UDP, api.SCTP:
		ports = fmt.Sprintf(", toPorts: [{ports: [{port: %q, protocol: %s}]}]", fmt.Sprint(q.Port), strings.ToUpper(ProtocolName(q.Protocol)))
	case api.ICMP, api.ICMPv6:
		family := map[uint8]string{api.ICMP: "IPv4", api.ICMPv6: "IPv6"}[q.Protocol]
		ports = fmt.Sprintf(", icmps: [{fields: [{type: %d, family: %s}]}]", q.Port&0xFF, family)
	}
	return fmt.Sprintf("%s: [{%s%s}]", section, who, ports)
}

// matchLabels are the labels that tell a workload, without the cluster when it
// is the own one.
func (q Question) matchLabels(ls labels.Set) string {
	var out []string
	for _, l := range ls {
		if l.Source == labels.Mesh && l.Key == labels.ClusterKey && l.Value == q.Cluster {
			continue
		}
		key := l.Key
		if l.Source == labels.Mesh || l.Source == labels.Namespace {
			key = l.Source + ":" + l.Key
		}
		out = append(out, fmt.Sprintf("%s: %q", key, l.Value))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}
