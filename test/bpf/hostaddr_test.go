// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

// An address of the node that other nodes do not know: the host's to its pods, in
// both directions, and nobody's to whoever sends through the tunnel.
func TestLocalHostAddresses(t *testing.T) {
	h := newHarness(t)
	for i, f := range families() {
		local, prefix := "172.30.77.1", "172.30.77.1/32"
		if f.icmp != 1 {
			local, prefix = "fd77::1", "fd77::1/128"
		}
		sport := uint16(1000 + 10*i)
		toHost := h.sent(f.a, segment(f.a.ip, local, sport, 80, "S"))
		fromTunnel := h.tunnelled(node2, idR, segment(f.r.ip, local, sport, 80, "S"))
		fromHost := h.plain(segment(local, f.a.ip, sport+1, 80, "S"))

		h.rules(f.a, datapath.RuleSet{ID: 5, Ingress: true, Egress: true, Entries: entries{
			{Direction: datapath.Egress, Identity: identity.Host}:  {Deny: true, Origin: 9},
			{Direction: datapath.Egress, Identity: identity.World}: {},
			{Direction: datapath.Ingress, Identity: identity.Host}: {},
		}})
		// Not the node's: the world, and what comes from it is let in by nobody.
		if r := h.fromPod(f.a, toHost); r.act != actOK || len(h.events()) != 0 {
			t.Errorf("%s is not the world: verdict %d", local, r.act)
		}
		h.dropped(h.fromHost(fromHost), maps.DropPolicyDenied)

		h.tables.IPCache.Set(key(prefix), datapath.IPEntry{Identity: identity.Host, Flags: datapath.IPHost | datapath.IPLocal})
		h.sync()
		if e := h.dropped(h.fromPod(f.a, toHost), maps.DropPolicyDenied); e.DestID != identity.Host || e.Origin != 9 {
			t.Errorf("%s: event %+v", local, e)
		}
		h.passed(h.fromHost(fromHost))
		h.dropped(h.fromOverlay(fromTunnel), maps.DropUnknownDestination)
		// Nobody in the tunnel is this node.
		h.dropped(h.fromOverlay(h.tunnelled(node2, idR, segment(local, f.a.ip, sport, 80, "S"))), maps.DropSpoofedSource)

		// One that its record names is reached through the tunnel.
		h.tables.IPCache.Set(key(prefix), datapath.IPEntry{Identity: identity.Host, Flags: datapath.IPHost})
		h.sync()
		h.passed(h.fromOverlay(fromTunnel))
		h.tables.IPCache.Delete(key(prefix))
		h.sync()
	}
}
