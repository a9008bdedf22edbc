// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/ipcache"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy/api"
	"github.com/hawser-mesh/hawser/policy/trace"
	"github.com/hawser-mesh/hawser/tunnel"
)

// host is a node by its names; of an external tunnel endpoint both are empty.
type host struct{ cluster, node string }

func (h host) String() string {
	if h == (host{}) {
		return "an external tunnel endpoint"
	}
	return "node " + h.cluster + "/" + h.node
}

// tunnels is what a trace knows of tunnels and of masquerading.
type tunnels struct {
	port  uint16 // UDP
	ends  map[netip.Addr]host
	masks map[host][]netip.Addr // of nodes that were asked: what they masquerade by
}

// learnTunnels asks for what decides about UDP and SCTP beside policies: the nodes,
// and the API server for the ends of tunnels.
func (k *knowledge) learnTunnels(ctx context.Context, s *session.Session, proto uint8) error {
	k.tunnels = tunnels{port: tunnel.DefaultVXLANPort, ends: map[netip.Addr]host{}, masks: map[host][]netip.Addr{}}
	if proto != api.UDP && proto != api.SCTP {
		return nil
	}
	nodes, err := session.Gather(ctx, s, func(ctx context.Context, n session.NodeConn) ([]*hawserv1.NodeStatusReport, error) {
		r, err := n.Status(ctx, &hawserv1.StatusRequest{})
		return []*hawserv1.NodeStatusReport{r}, err
	})
	if err != nil && !errors.Is(err, session.ErrNoAgents) {
		return err
	}
	for _, n := range nodes {
		k.tunnels.port = cmp.Or(uint16(n.GetTunnelPort()), k.tunnels.port)
		k.tunnels.masks[host{n.GetCluster(), n.GetNode()}] = addrs(n.GetMasqueradeAddresses())
	}
	client, conn, err := s.Mesh()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := s.Deadline(ctx)
	defer cancel()
	listed, err1 := client.ListNodes(ctx, &hawserv1.ListNodesRequest{})
	external, err2 := client.ListVTEPs(ctx, &hawserv1.ListVTEPsRequest{})
	for _, v := range external.GetVteps() {
		for _, a := range addrs([]string{v.GetTunnelAddress()}) {
			k.tunnels.ends[a] = host{}
		}
	}
	for _, n := range listed.GetNodes() {
		for _, a := range addrs([]string{n.GetTunnelAddress()}) {
			k.tunnels.ends[a] = host{n.GetCluster(), n.GetName()}
		}
	}
	return errors.Join(err1, err2)
}

func addrs(texts []string) (out []netip.Addr) {
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// isWorkload reports whether an end is a workload, whose packets programs see.
func isWorkload(e trace.End) bool {
	_, ok := e.Labels.Get(labels.Mesh, labels.ClusterKey)
	return ok
}

// nowhere is why an address is nobody's to a pod, by the drop's reason, and what it
// is; empty: it is not one of these.
func nowhere(a netip.Addr) (reason, what string) {
	bytes := a.AsSlice()
	switch {
	case !a.IsValid():
	case a.IsMulticast():
		return "multicast", "is for many"
	case a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "multicast", "is for all of a link"
	case a.Is4() && (bytes[0] == 0 || bytes[0] == 127):
		return "unknown destination", "is on no wire, and what a pod sends to its own never leaves it"
	case a.Is6() && !slices.ContainsFunc(bytes[:12], func(b byte) bool { return b != 0 }):
		return "malformed packet", "is on no wire, and what a pod sends to its own never leaves it"
	case a.Is6() && a.IsLinkLocalUnicast():
		return "unknown destination", "is of one link"
	}
	return "", ""
}

// forges is why a packet of UDP to a port would be taken for one of the tunnel's;
// empty: it would not. The note says where it is not so.
func (k *knowledge) forges(p packet, port uint16) (reason, note string) {
	if port != k.tunnels.port || !p.to.Addr.Is4() {
		return "", ""
	}
	end, is := k.tunnels.ends[p.to.Addr]
	behind := k.entryOf(p.to.Addr).GetSource() == ipcache.KindExternal.String()
	on := k.entryOf(p.from.Addr)
	if !is && !behind || is && end.node != "" && end == (host{on.GetCluster(), on.GetNode()}) {
		return "", "" // its own node takes nothing of pods for the tunnel's
	}
	if behind && !is {
		return fmt.Sprintf("port %d/udp is the tunnel's, and %s is behind an external tunnel endpoint", port, p.to.Addr), ""
	}
	if on.GetNode() == "" && end.node != "" {
		note = fmt.Sprintf("on which node %s is, is not known; on %s it is not dropped so", p.from.Name, end)
	}
	return fmt.Sprintf("port %d/udp of %s is the tunnel's: %s", port, p.to.Addr, end), note
}

// inKernel are the verdicts about a packet that is dropped, or passes, whatever
// policies say, as the programs have it; nil: another one.
func (k *knowledge) inKernel(p packet, proto uint8, port uint16) []verdictRow {
	if !isWorkload(p.from) {
		return nil
	}
	rows := func(verdict, reason string, notes ...string) []verdictRow {
		return []verdictRow{
			{Direction: "egress", At: p.from.Name, Verdict: verdict, Reason: reason, Hints: notes},
			{Direction: "ingress", At: p.to.Name, Verdict: verdict, Reason: reason},
		}
	}
	if drop, what := nowhere(p.to.Addr); drop != "" {
		return rows(verdictDenied, fmt.Sprintf("dropped as %q whatever policies say: %s %s", drop, p.to.Addr, what))
	}
	if p.from.Addr.IsValid() && p.from.Addr == p.to.Addr {
		return rows(verdictAllowed, "policy is not asked about a pod and itself: it never leaves the pod, but by the address of a service")
	}
	if proto != api.UDP {
		return nil
	}
	why, note := k.forges(p, port)
	if why == "" {
		return nil
	}
	var notes []string
	if note != "" {
		notes = []string{note}
	}
	return rows(verdictDenied, fmt.Sprintf("dropped as %q whatever policies say: %s", "forged tunnel packet", why), notes...)
}

// unmasked corrects the answer about SCTP to the outside, which policy is asked
// about first, and which masquerading has no ports for.
func (k *knowledge) unmasked(p packet, proto uint8, egress *verdictRow) {
	outside := !isWorkload(p.to) && (p.to.Reserved == 0 || p.to.Reserved == identity.World) && k.entryOf(p.to.Addr) == nil
	if proto != api.SCTP || !isWorkload(p.from) || !outside || egress.Verdict == verdictDenied {
		return
	}
	on := k.entryOf(p.from.Addr)
	by, asked := k.tunnels.masks[host{on.GetCluster(), on.GetNode()}]
	masked := slices.ContainsFunc(by, func(a netip.Addr) bool { return a.Is6() == (p.family == "IPv6") })
	switch {
	case !asked:
		egress.Hints = append(egress.Hints, fmt.Sprintf("SCTP is not masqueraded: where the node of %s masquerades (hawser status), what leaves by the underlay device is dropped as %q", p.from.Name, "unsupported protocol"))
	case masked:
		egress.Hints = append(egress.Hints, "by policy: "+egress.Verdict+", "+egress.Reason, "what the node routes out of another device leaves as it is")
		egress.Verdict = verdictDenied
		egress.Reason = fmt.Sprintf("dropped as %q: node %s/%s masquerades what leaves by the underlay device, and SCTP cannot be", "unsupported protocol", on.GetCluster(), on.GetNode())
	}
}
