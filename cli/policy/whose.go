// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"fmt"
	"net/netip"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/ipcache"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy/trace"
)

// entryOf is what the asked node, or the API server, knows of an address; nil:
// nothing. Prefixes that only policies use do not count.
func (k *knowledge) entryOf(a netip.Addr) *hawserv1.IPCacheEntry {
	var best *hawserv1.IPCacheEntry
	bits := -1
	for _, e := range k.addresses {
		p, err := netip.ParsePrefix(e.GetPrefix())
		if err == nil && a.IsValid() && p.Contains(a) && p.Bits() > bits && e.GetSource() != ipcache.KindCIDR.String() {
			best, bits = e, p.Bits()
		}
	}
	return best
}

// seenFrom is the peer as the node of self takes it: an address of that node is
// the host's there, one of another node a remote node's, whichever node was
// asked. The note says what is not known of that.
func (k *knowledge) seenFrom(self, peer trace.End) (end trace.End, note string) {
	at, on := k.entryOf(peer.Addr), k.entryOf(self.Addr)
	source := at.GetSource()
	ofHost := source == ipcache.KindHost.String()
	if _, workload := self.Labels.Get(labels.Mesh, labels.ClusterKey); !workload || source != ipcache.KindNode.String() && !ofHost {
		return peer, ""
	}
	where := at.GetCluster() + "/" + at.GetNode()
	switch {
	case on.GetNode() == "":
		peer.Reserved = identity.RemoteNode
		note = fmt.Sprintf("%s is judged as another node's: on which node %s is, is not known; for endpoints on %s it is the host", peer.Addr, self.Name, where)
	case on.GetNode() == at.GetNode() && on.GetCluster() == at.GetCluster():
		peer.Reserved = identity.Host
	case ofHost: // only its own node knows it
		peer.Reserved = identity.Unknown
	default:
		peer.Reserved = identity.RemoteNode
	}
	return peer, note
}

// nobodys are the verdicts about a packet from or to an address in a range of the
// mesh, or in a node's pod CIDR, that nobody has, which is dropped whatever policies
// say; nil: another one. What is behind an external tunnel endpoint is outside.
func (k *knowledge) nobodys(p packet) []verdictRow {
	reason := ""
	for _, end := range []struct {
		addr netip.Addr
		drop string
	}{{p.to.Addr, "unknown destination"}, {p.from.Addr, "spoofed source"}} {
		e := k.entryOf(end.addr)
		switch e.GetSource() {
		case ipcache.KindRange.String():
			reason = fmt.Sprintf("dropped as %q whatever policies say: nobody has %s of the mesh's range %s", end.drop, end.addr, e.GetPrefix())
		case ipcache.KindVTEP.String():
			reason = fmt.Sprintf("dropped as %q whatever policies say: nobody has %s of the pod CIDR %s of node %s/%s", end.drop, end.addr, e.GetPrefix(), e.GetCluster(), e.GetNode())
		}
	}
	if reason == "" {
		return nil
	}
	return []verdictRow{
		{Direction: "egress", At: p.from.Name, Verdict: verdictDenied, Reason: reason},
		{Direction: "ingress", At: p.to.Name, Verdict: verdictDenied, Reason: reason},
	}
}

// addNodes tells the nodes' addresses and pod ranges as they are published.
func (k *knowledge) addNodes(ctx context.Context, client hawserv1.MeshClient) error {
	r, err := client.ListNodes(ctx, &hawserv1.ListNodesRequest{})
	for _, n := range r.GetNodes() {
		for _, text := range append([]string{n.GetTunnelAddress()}, n.GetAddresses()...) {
			if a, err := netip.ParseAddr(text); err == nil {
				k.addresses = append(k.addresses, &hawserv1.IPCacheEntry{
					Prefix: netip.PrefixFrom(a, a.BitLen()).String(), Cluster: n.GetCluster(), Node: n.GetName(),
					Identity: uint32(identity.RemoteNode), Source: ipcache.KindNode.String(),
				})
			}
		}
		for _, text := range n.GetPodCidrs() {
			k.addresses = append(k.addresses, &hawserv1.IPCacheEntry{Prefix: text, Cluster: n.GetCluster(), Node: n.GetName(), Source: ipcache.KindVTEP.String()})
		}
	}
	return err
}
