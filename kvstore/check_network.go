// SPDX-License-Identifier: Apache-2.0

package kvstore

import (
	"net"
	"net/netip"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/tunnel"
)

const maxPort = 65535

func (l Limits) checkCluster(k Key, r *keyspacev1.Cluster) error {
	if r.GetName() != k.Cluster {
		return bad(k, ReasonMismatch, "the record's name is %q", r.GetName())
	}
	space, err := identity.NewSpace(r.GetMesh().GetClusterBits())
	if err != nil {
		return bad(k, ReasonRange, "%v", err)
	}
	if id := r.GetId(); id == 0 || id > space.MaxCluster() {
		return bad(k, ReasonRange, "cluster id %d is not within 1-%d", id, space.MaxCluster())
	}
	if l.ClusterID != nil {
		if id := l.ClusterID(k.Cluster); id != 0 && id != r.GetId() {
			return bad(k, ReasonMismatch, "cluster id %d, but it is known as %d", r.GetId(), id)
		}
	}
	if err := checkPrefixes(k, "pod CIDRs", r.GetPodCidrs(), MaxRanges); err != nil {
		return err
	}
	if err := checkPrefixes(k, "node CIDRs", r.GetNodeCidrs(), MaxRanges); err != nil {
		return err
	}
	if err := checkPrefixes(k, "service CIDRs", r.GetServiceCidrs(), MaxRanges); err != nil {
		return err
	}
	return checkPrefixes(k, "Kubernetes API servers", r.GetKubeApiservers(), MaxKubeAPIServers)
}

func (l Limits) checkNode(k Key, r *keyspacev1.Node) error {
	if r.GetCluster() != k.Cluster {
		return bad(k, ReasonMismatch, "the record's cluster is %q", r.GetCluster())
	}
	if err := bounded(k, "addresses", len(r.GetAddresses()), MaxAddresses); err != nil {
		return err
	}
	for _, a := range r.GetAddresses() {
		if err := checkAddr(k, "address", a.GetIp()); err != nil {
			return err
		}
	}
	if err := checkOptionalAddr(k, "tunnel address", r.GetTunnelAddress()); err != nil {
		return err
	}
	if n := len(r.GetWireguardPublicKey()); n != 0 && n != 32 {
		return bad(k, ReasonMismatch, "WireGuard key of %d bytes, not 32", n)
	}
	if r.GetMtu() > maxPort {
		return bad(k, ReasonRange, "MTU %d is above %d", r.GetMtu(), maxPort)
	}
	if err := checkPrefixes(k, "pod CIDRs", r.GetPodCidrs(), MaxNodeRanges); err != nil {
		return err
	}
	return agree(k, "name", r.GetName())
}

// checkIP allows the reserved identities that a workload's or node's address
// can have in another cluster's eyes; world and host are never published.
func (l Limits) checkIP(k Key, r *keyspacev1.IPEntry) error {
	if err := checkPrefix(k, r.GetPrefix()); err != nil {
		return err
	}
	switch identity.Number(r.GetIdentity()) {
	case identity.Health, identity.Init, identity.RemoteNode, identity.KubeAPIServer, identity.Ingress:
	default:
		if err := l.checkNumber(k, r.GetIdentity()); err != nil {
			return err
		}
	}
	if r.GetNode() == "" {
		return bad(k, ReasonMismatch, "no node")
	}
	if err := checkOptionalAddr(k, "tunnel address", r.GetTunnelAddress()); err != nil {
		return err
	}
	if err := bounded(k, "named ports", len(r.GetNamedPorts()), MaxNamedPorts); err != nil {
		return err
	}
	for _, p := range r.GetNamedPorts() {
		if err := checkPort(k, p.GetPort()); err != nil {
			return err
		}
	}
	return agree(k, "prefix", r.GetPrefix())
}

func checkVTEP(k Key, r *keyspacev1.VTEP) error {
	if err := checkPrefix(k, r.GetPrefix()); err != nil {
		return err
	}
	if err := checkAddr(k, "tunnel address", r.GetTunnelAddress()); err != nil {
		return err
	}
	if m, err := net.ParseMAC(r.GetMac()); r.GetMac() != "" && (err != nil || len(m) != 6) {
		return bad(k, ReasonAddress, "%q is no hardware address of six bytes", r.GetMac())
	}
	if r.GetVni() > tunnel.MaxVNI {
		return bad(k, ReasonRange, "VNI %d does not fit 24 bits", r.GetVni())
	}
	return agree(k, "prefix", r.GetPrefix())
}

func (l Limits) checkService(k Key, r *keyspacev1.Service) error {
	if r.GetId() != 0 {
		if err := l.checkServiceNumber(k, r.GetId()); err != nil {
			return err
		}
	}
	if err := bounded(k, "ports", len(r.GetPorts()), MaxPorts); err != nil {
		return err
	}
	for _, p := range r.GetPorts() {
		if err := checkPort(k, p.GetPort()); err != nil {
			return err
		}
	}
	if err := checkVIPs(k, r.GetVips()); err != nil {
		return err
	}
	return agree(k, "namespace", r.GetNamespace(), "name", r.GetName())
}

func checkSlice(k Key, r *keyspacev1.BackendSlice) error {
	if err := bounded(k, "backends", len(r.GetBackends()), MaxBackends); err != nil {
		return err
	}
	for _, b := range r.GetBackends() {
		if err := checkAddr(k, "backend", b.GetIp()); err != nil {
			return err
		}
		if err := bounded(k, "ports of one backend", len(b.GetPorts()), MaxPorts); err != nil {
			return err
		}
		for _, p := range b.GetPorts() {
			if err := checkPort(k, p.GetPort()); err != nil {
				return err
			}
		}
	}
	return agree(k, "namespace", r.GetNamespace(), "service", r.GetService(), "name", r.GetName())
}

func checkPort(k Key, p uint32) error {
	if p == 0 || p > maxPort {
		return bad(k, ReasonRange, "port %d is not within 1-%d", p, maxPort)
	}
	return nil
}

func checkOptionalAddr(k Key, what, s string) error {
	if s == "" {
		return nil
	}
	return checkAddr(k, what, s)
}

// checkAddr wants a unicast address that means the same on every host, in
// canonical text.
func checkAddr(k Key, what, s string) error {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return bad(k, ReasonAddress, "%s %q is not an address", what, s)
	case a.String() != s || a.Zone() != "" || a.Is4In6():
		return bad(k, ReasonAddress, "%s %q is not written canonically", what, s)
	case a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a.Is6() && a.IsLinkLocalUnicast():
		return bad(k, ReasonAddress, "%s %s is not a unicast address of one host", what, s)
	}
	return nil
}

func checkVIPs(k Key, vips []string) error {
	if err := bounded(k, "addresses", len(vips), MaxAddresses); err != nil {
		return err
	}
	for _, v := range vips {
		if err := checkAddr(k, "vip", v); err != nil {
			return err
		}
	}
	return nil
}

func checkPrefixes(k Key, what string, list []string, most int) error {
	if err := bounded(k, what, len(list), most); err != nil {
		return err
	}
	for _, s := range list {
		if err := checkPrefix(k, s); err != nil {
			return err
		}
	}
	return nil
}

// checkPrefix wants a masked prefix, not a default route, whose addresses pass
// checkAddr.
func checkPrefix(k Key, s string) error {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return bad(k, ReasonAddress, "%q is not a prefix", s)
	}
	if PrefixName(p) != s {
		return bad(k, ReasonAddress, "prefix %q is not written canonically", s)
	}
	if p.Bits() == 0 {
		return bad(k, ReasonAddress, "a default route (%s) is never accepted", s)
	}
	return checkAddr(k, "prefix", p.Addr().String())
}
