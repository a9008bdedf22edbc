// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
)

// onLink is a message of neighbour discovery.
func onLink(src, dst string, kind uint8, body []byte) []gopacket.SerializableLayer {
	ls := message6(src, dst, kind, 0, body)
	ls[0].(*layers.IPv6).HopLimit = 255
	return ls
}

// solicit asks who has an address; with a MAC it also tells the asker's.
func solicit(src, dst, target string, mac []byte) []gopacket.SerializableLayer {
	body := append(make([]byte, 4), net.ParseIP(target)...)
	if mac != nil {
		body = append(append(body, 1, 1), mac...)
	}
	return onLink(src, dst, layers.ICMPv6TypeNeighborSolicitation, body)
}

// swallowed expects that a packet ends here, and nobody hears of it.
func (h *harness) swallowed(r result, program string, dir datapath.Direction) {
	h.t.Helper()
	if n := h.moved(metric{maps.DropLinkTalk, dir, program}); n != 1 {
		h.t.Errorf("counter of link talk moved by %d, want 1", n)
	}
	if n := h.moved(metric{maps.Forwarded, dir, program}); n != 0 {
		h.t.Errorf("%d packets are counted as forwarded", n)
	}
	if e := h.events(); r.act != actShot || len(e) != 0 {
		h.t.Errorf("verdict %d with events %+v, want that it just ends", r.act, e)
	}
}

// Every address but a pod's own is behind the host's end of its veth.
func TestNeighbourDiscovery(t *testing.T) {
	h := newHarness(t)
	a := h.eps[podA.name]
	advertised := func(t *testing.T, r result, to, target string, mac []byte) {
		t.Helper()
		h.passed(r)
		eth, i, _ := decode6(t, r.out)
		nd := r.out[54:]
		if i.SrcIP.String() != target || i.DstIP.String() != to || i.HopLimit != 255 || nd[0] != 136 ||
			binary.BigEndian.Uint32(nd[4:]) != 0xE0000000 || net.IP(nd[8:24]).String() != target ||
			!bytes.Equal(nd[24:26], []byte{2, 1}) || !bytes.Equal(nd[26:32], mac) || !bytes.Equal(eth.SrcMAC, mac) {
			t.Errorf("answer %v %x", i, nd)
		}
	}
	for _, gateway := range []string{"fe80::1", podB6.ip, podR6.ip, outside6} {
		advertised(t, h.from6(solicit(podA6.ip, "ff02::1:ff00:1", gateway, a.PodMAC[:])), podA6.ip, gateway, a.HostMAC[:])
		// Whether it is still there is asked without an option, and of it alone.
		advertised(t, h.from6(solicit("fe80::aa", gateway, gateway, nil)), "fe80::aa", gateway, a.HostMAC[:])
	}
	r := h.fromPod(podA, h.sent(podA, solicit(podA6.ip, "ff02::1:ff00:1", "fe80::1", a.PodMAC[:])))
	if !bytes.Equal(r.out[:6], a.PodMAC[:]) {
		t.Errorf("answered to %x", r.out[:6])
	}
	// The host asks for pods.
	r = h.fromHost(h.plain(solicit(self6, "ff02::1:ff00:5", podA6.ip, nil)))
	h.passed(r)
	advertised(t, r, self6, podA6.ip, r.out[6:12])
	if bytes.Equal(r.out[6:12], make([]byte, 6)) {
		t.Error("no MAC address")
	}
	if all, _ := h.flows6(); len(all) != 0 {
		t.Errorf("%d flows", len(all))
	}
}

// What a host says to its link all the time is no drop.
func TestLinkTalkIsNoDrop(t *testing.T) {
	h := newHarness(t)
	h.rules(podA, datapath.RuleSet{ID: 5, Ingress: true, Egress: true})
	listeners := func(src string, kind uint8) []gopacket.SerializableLayer {
		ls := behind(t, message6(src, "ff02::16", kind, 0, make([]byte, 24)), extension{0, []byte{5, 2, 0, 0, 1, 0}})
		ls[0].(*layers.IPv6).HopLimit = 1
		return ls
	}
	talk := map[string][]gopacket.SerializableLayer{
		"looks for a duplicate of its address":    solicit("::", "ff02::1:ff00:5", podA6.ip, nil),
		"looks for a duplicate of the link's one": solicit("::", "ff02::1:ff00:aa", "fe80::aa", nil),
		"asks for itself":                         solicit("fe80::aa", "ff02::1:ff00:5", podA6.ip, nil),
		"announces its address":                   onLink(podA6.ip, "ff02::1", layers.ICMPv6TypeNeighborAdvertisement, make([]byte, 20)),
		"tells its listeners":                     listeners("fe80::aa", 143),
		"tells its listeners before it is one":    listeners("::", 143),
		"tells its listeners as of old":           listeners("fe80::aa", 131),
	}
	for name, ls := range talk {
		t.Run(name, func(t *testing.T) {
			h.t = t
			h.swallowed(h.from6(ls), "from_pod", datapath.Egress)
			if name != "asks for itself" { // the host has no address that the program knows as its own
				h.swallowed(h.fromHost(h.plain(ls)), "from_host", datapath.Ingress)
			}
		})
	}
}

func TestLinkTalkThatIsForged(t *testing.T) {
	h := newHarness(t)
	a := h.eps[podA.name]
	hops := func(ls []gopacket.SerializableLayer, n uint8) []gopacket.SerializableLayer {
		ls[0].(*layers.IPv6).HopLimit = n
		return ls
	}
	good := func() []gopacket.SerializableLayer {
		return solicit(podA6.ip, "ff02::1:ff00:1", "fe80::1", a.PodMAC[:])
	}
	for name, c := range map[string]struct {
		ls     []gopacket.SerializableLayer
		reason datapath.DropReason
	}{
		"from beyond the link":       {hops(good(), 254), maps.DropMalformed},
		"listeners from beyond":      {hops(onLink("fe80::aa", "ff02::16", 143, make([]byte, 8)), 64), maps.DropMalformed},
		"for a group":                {solicit(podA6.ip, "ff02::1", "ff02::1", nil), maps.DropMalformed},
		"with another's address":     {solicit(podB6.ip, "ff02::1:ff00:1", "fe80::1", nil), maps.DropSpoofedSource},
		"announces another's":        {onLink(podB6.ip, "ff02::1", 136, make([]byte, 20)), maps.DropSpoofedSource},
		"too short":                  {onLink(podA6.ip, "ff02::1:ff00:1", 135, make([]byte, 10)), maps.DropMalformed},
		"behind an extension header": {behind(t, good(), extension{60, make([]byte, 6)}), maps.DropMalformed},
		"in an atomic fragment":      {behind(t, good(), extension{44, make([]byte, 6)}), maps.DropMalformed},
		"a router's advertisement":   {onLink("fe80::aa", "ff02::1", 134, make([]byte, 12)), maps.DropUnsupportedProtocol},
		"a redirect":                 {onLink("fe80::aa", podA6.ip, 137, make([]byte, 36)), maps.DropUnsupportedProtocol},
		"asks for routers":           {onLink("fe80::aa", "ff02::2", 133, make([]byte, 4)), maps.DropRouterSolicitation},
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			h.dropped(h.from6(c.ls), c.reason)
		})
	}
	t.Run("from another link", func(t *testing.T) {
		h.t = t
		h.dropped(h.fromOverlay(h.tunnelled(node2, idR, solicit(podR6.ip, podA6.ip, podA6.ip, nil))), maps.DropUnsupportedProtocol)
		h.dropped(h.fromOverlay(h.plain(solicit(outside6, podA6.ip, podA6.ip, nil))), maps.DropUnsupportedProtocol)
	})
}
