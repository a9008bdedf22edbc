// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
	"github.com/hawser-mesh/hawser/policy/trace"
)

// port reads "80/tcp", "80", "icmp" (a ping) or "8/icmp" (a message of type 8).
func port(text string) (uint8, uint16, error) {
	number, protocol, given := strings.Cut(strings.ToLower(text), "/")
	switch {
	case !given && number == "icmp":
		return api.ICMP, api.ICMPPort(api.EchoRequest(api.ICMP)), nil
	case !given && number == "icmpv6":
		return api.ICMPv6, api.ICMPPort(api.EchoRequest(api.ICMPv6)), nil
	}
	if proto, ok := map[string]uint8{"icmp": api.ICMP, "icmpv6": api.ICMPv6}[protocol]; ok {
		n, err := strconv.ParseUint(number, 10, 8)
		if err != nil {
			return 0, 0, fmt.Errorf("%q is not a type of %s: want 0 to 255", text, protocol)
		}
		if why := api.NeverJudged(proto, uint8(n)); why != "" {
			return 0, 0, errors.New(why)
		}
		return proto, api.ICMPPort(uint8(n)), nil
	}
	proto, ok := map[string]uint8{"tcp": api.TCP, "udp": api.UDP, "sctp": api.SCTP}[cmp.Or(protocol, "tcp")]
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 || !ok {
		return 0, 0, fmt.Errorf("%q is not a port: want 80/tcp, 53/udp, 38412/sctp, icmp or icmpv6 (a ping)", text)
	}
	return proto, uint16(n), nil
}

// packet is who asks and who is asked, with addresses of one family where they
// are known.
type packet struct {
	family   string // IPv4, IPv6
	from, to trace.End
}

// packets are those of each family that both ends have.
func packets(from, to place, proto uint8) ([]packet, error) {
	families := []string{"IPv4", "IPv6"}
	switch proto {
	case api.ICMP:
		families = families[:1]
	case api.ICMPv6:
		families = families[1:]
	}
	if len(from.addrs) == 0 && len(to.addrs) == 0 {
		return []packet{{families[0], from.End, to.End}}, nil
	}
	var out []packet
	for _, family := range families {
		p := packet{family: family}
		var ok1, ok2 bool
		p.from, ok1 = from.in(family == "IPv6")
		p.to, ok2 = to.in(family == "IPv6")
		if ok1 && ok2 {
			out = append(out, p)
		}
	}
	if len(out) == 0 {
		return nil, session.Usage("%s has %s and %s has %s: there is no %s packet between them",
			from.Name, addresses(from), to.Name, addresses(to), strings.Join(families, " or "))
	}
	return out, nil
}

// in is the end with its address of a family; one whose addresses are not known
// may have it.
func (p place) in(ipv6 bool) (trace.End, bool) {
	i := slices.IndexFunc(p.addrs, func(a netip.Addr) bool { return a.Is6() == ipv6 })
	if i >= 0 {
		p.Addr = p.addrs[i]
	}
	return p.End, i >= 0 || len(p.addrs) == 0
}

func addresses(p place) string {
	var texts []string
	for _, a := range p.addrs {
		texts = append(texts, a.String())
	}
	return cmp.Or(strings.Join(texts, ", "), "no known address")
}

// addEnforcement asks the nodes how they read and enforce policy.
func (k *knowledge) addEnforcement(ctx context.Context, s *session.Session) {
	type told struct {
		scope, mode string
		audit       bool
	}
	rows, err := session.Gather(ctx, s, func(ctx context.Context, n session.NodeConn) ([]told, error) {
		r, err := n.Status(ctx, &hawserv1.StatusRequest{})
		if err != nil {
			return nil, err
		}
		return []told{{r.GetPolicyScope(), r.GetPolicyMode(), r.GetPolicyAudit()}}, nil
	})
	if errors.Is(err, session.ErrNoAgents) {
		for _, n := range k.nodes {
			if n.GetMode() != "" && n.GetNode() == cmp.Or(s.Node, n.GetNode()) {
				rows = append(rows, told{n.GetScope(), n.GetMode(), n.GetAudit()})
			}
		}
		if len(rows) > 0 {
			err = nil
		}
	}
	if err != nil {
		s.Warn("no node could be asked how it enforces policy (%v): this is for the defaults", err)
		return
	}
	k.scope, k.mode = policy.Scope(rows[0].scope), policy.Mode(rows[0].mode)
	switch {
	case slices.ContainsFunc(rows, func(r told) bool { return r != rows[0] }):
		s.Warn("the nodes enforce policy differently (--policy-default-scope, --policy-enforcement, --policy-audit): this is for the first; choose with --node")
	case k.mode == policy.ModeNever:
		s.Warn("the nodes enforce no policy (--policy-enforcement=never)")
	case rows[0].audit:
		s.Warn("the nodes audit (--policy-audit): what is closed is reported, and passes")
	}
}
