// SPDX-License-Identifier: Apache-2.0

package ipcache

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/tunnel"
)

type nodeKey struct{ cluster, name string }

// nodeClaims is what a node's record claims.
type nodeClaims struct {
	prefixes []netip.Prefix
	tunnel   netip.Addr
}

// SetEndpoint claims an address for an endpoint of this node. It wins over all.
func (c *Cache) SetEndpoint(a netip.Addr, id identity.Number, workload string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.claim(source{Kind: KindEndpoint}, Entry{
		Prefix: hostPrefix(a), IPEntry: datapath.IPEntry{Identity: id},
		Cluster: c.cfg.Cluster, Node: c.cfg.Node, Workload: workload, Source: KindEndpoint,
	})
}

// DeleteEndpoint withdraws SetEndpoint; the next claim shows, if there is one.
func (c *Cache) DeleteEndpoint(a netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unclaim(source{Kind: KindEndpoint}, hostPrefix(a))
}

func hostPrefix(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	return netip.PrefixFrom(a, a.BitLen())
}

// UpsertIP takes state/<cluster>/ips/…. A record that cannot be believed is an
// error, and withdraws what was there under its prefix.
func (c *Cache) UpsertIP(cluster string, r *keyspacev1.IPEntry) error {
	p, err := parsePrefix(r.GetPrefix())
	if err != nil {
		return fmt.Errorf("ip of cluster %s: %w", cluster, err)
	}
	id := identity.Number(r.GetIdentity())
	tunnel, err := parseTunnel(r.GetTunnelAddress())
	if name, reserved := id.Reserved(); err == nil && (reserved && id != identity.Health && id != identity.Init || id.IsLocal()) {
		err = fmt.Errorf("identity %d %s is not one of a workload", id, name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s := source{Kind: KindIP, Cluster: cluster}
	if err != nil {
		c.unclaim(s, p)
		return fmt.Errorf("ip %s of cluster %s: %w", p, cluster, err)
	}
	workload := r.GetWorkload()
	if r.GetNamespace() != "" {
		workload = r.GetNamespace() + "/" + workload
	}
	c.claim(s, Entry{
		Prefix: p, IPEntry: datapath.IPEntry{Identity: id, Tunnel: tunnel},
		Cluster: cluster, Node: r.GetNode(), Workload: workload, Source: KindIP,
	})
	return nil
}

// DeleteIP withdraws UpsertIP.
func (c *Cache) DeleteIP(cluster string, p netip.Prefix) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unclaim(source{Kind: KindIP, Cluster: cluster}, p.Masked())
}

// UpsertVTEP takes state/<cluster>/vteps/…: where a prefix is, not who has it.
// One that names no node was declared by an operator: what is behind it is of the
// outside, reached through a tunnel.
func (c *Cache) UpsertVTEP(cluster string, r *keyspacev1.VTEP) error {
	p, err := parsePrefix(r.GetPrefix())
	if err != nil {
		return fmt.Errorf("vtep of cluster %s: %w", cluster, err)
	}
	at, err := parseTunnel(r.GetTunnelAddress())
	mac := tunnel.ExternalMAC()
	if text := r.GetMac(); err == nil && text != "" {
		mac, err = parseMAC(text)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.withdrawVTEP(cluster, p)
	if err != nil {
		return fmt.Errorf("vtep %s of cluster %s: %w", p, cluster, err)
	}
	e := Entry{
		Prefix: p, IPEntry: datapath.IPEntry{Tunnel: at, Flags: datapath.IPCIDR},
		Cluster: cluster, Node: r.GetNode(), Source: KindVTEP,
	}
	if r.GetNode() != "" {
		c.claim(source{Kind: KindVTEP, Cluster: cluster}, e)
		return nil
	}
	k := nodeKey{cluster, vtepName(p)}
	c.nodes[k] = nodeClaims{tunnel: at}
	c.claimTunnel(source{KindVTEP, cluster, k.name}, datapath.Node{
		Tunnel: at, ClusterID: datapath.ExternalCluster, Cluster: cluster, Name: k.name,
		VNI: cmp.Or(r.GetVni(), tunnel.ExternalVNI), MAC: mac,
	})
	e.Source = KindExternal
	c.claim(source{Kind: KindVTEP, Cluster: cluster}, e)
	return nil
}

func parseMAC(text string) (mac [6]byte, err error) {
	m, err := net.ParseMAC(text)
	if err != nil || len(m) != len(mac) {
		return mac, fmt.Errorf("%.64q is no hardware address of six bytes", text)
	}
	return [6]byte(m), nil
}

// DeleteVTEP withdraws UpsertVTEP.
func (c *Cache) DeleteVTEP(cluster string, p netip.Prefix) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.withdrawVTEP(cluster, p.Masked())
}

func (c *Cache) withdrawVTEP(cluster string, p netip.Prefix) {
	c.unclaim(source{Kind: KindVTEP, Cluster: cluster}, p)
	k := nodeKey{cluster, vtepName(p)}
	if old, ok := c.nodes[k]; ok {
		delete(c.nodes, k)
		c.unclaimTunnel(source{KindVTEP, cluster, k.name}, old.tunnel)
	}
}

// vtepName cannot be a node's: those have no ':'.
func vtepName(p netip.Prefix) string { return "vtep:" + p.String() }

// UpsertNode takes state/<cluster>/nodes/…. Addresses of the own node are host,
// those of all others remote-node.
func (c *Cache) UpsertNode(cluster string, r *keyspacev1.Node) error {
	tunnel, err := parseTunnel(r.GetTunnelAddress())
	prefixes := []netip.Prefix{}
	if err == nil {
		prefixes = append(prefixes, hostPrefix(tunnel))
	}
	for _, a := range r.GetAddresses() {
		p, perr := parsePrefix(a.GetIp())
		if perr == nil && !p.IsSingleIP() {
			perr = fmt.Errorf("address %s is not a single one", p)
		}
		prefixes = append(prefixes, p)
		err = errors.Join(err, perr)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	k := nodeKey{cluster, r.GetName()}
	if err != nil {
		c.withdrawNode(k, nodeClaims{})
		return fmt.Errorf("node %s of cluster %s: %w", r.GetName(), cluster, err)
	}
	now := nodeClaims{prefixes: prefixes, tunnel: tunnel}
	c.withdrawNode(k, now)
	c.nodes[k] = now
	s := source{KindNode, cluster, r.GetName()}
	e := Entry{Cluster: cluster, Node: r.GetName(), Source: KindNode,
		IPEntry: datapath.IPEntry{Identity: identity.RemoteNode, Tunnel: tunnel, Flags: datapath.IPRemoteNode}}
	if c.isSelf(cluster, r.GetName()) {
		e.IPEntry = datapath.IPEntry{Identity: identity.Host, Flags: datapath.IPHost}
	}
	for _, e.Prefix = range prefixes {
		c.claim(s, e)
	}
	c.claimTunnel(s, datapath.Node{Tunnel: tunnel, ClusterID: c.clusters[cluster],
		Cluster: cluster, Name: r.GetName(), MTU: r.GetMtu()})
	return nil
}

// DeleteNode withdraws UpsertNode.
func (c *Cache) DeleteNode(cluster, name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.withdrawNode(nodeKey{cluster, name}, nodeClaims{})
}

// withdrawNode withdraws what a node claimed and does not claim any more.
func (c *Cache) withdrawNode(k nodeKey, now nodeClaims) {
	old, ok := c.nodes[k]
	if !ok {
		return
	}
	delete(c.nodes, k)
	s := source{KindNode, k.cluster, k.name}
	for _, p := range old.prefixes {
		if !slices.Contains(now.prefixes, p) {
			c.unclaim(s, p)
		}
	}
	if old.tunnel != now.tunnel {
		c.unclaimTunnel(s, old.tunnel)
	}
}

// SetCluster tells a cluster's number, from its Cluster record. Rows of its
// nodes have 0 before: nothing is believed from them.
func (c *Cache) SetCluster(name string, id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.clusters[name] == id {
		return
	}
	c.clusters[name] = id
	for k, n := range c.nodes {
		if k.cluster != name {
			continue
		}
		for _, cl := range c.tunnels.all(n.tunnel) {
			if cl.source == (source{KindNode, k.cluster, k.name}) {
				cl.value.ClusterID = id
				c.claimTunnel(cl.source, cl.value)
				break
			}
		}
	}
}

// SetRanges tells the ranges of a cluster's pods and services, in place of those
// told before. An address in one that nobody has is nowhere: packets to it are
// not for the outside.
func (c *Cache) SetRanges(cluster string, ranges []netip.Prefix) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := source{Kind: KindRange, Cluster: cluster}
	now := make(map[netip.Prefix]struct{}, len(ranges))
	for _, p := range ranges {
		now[p] = struct{}{}
	}
	for _, old := range c.ranges[cluster] {
		if _, stays := now[old]; !stays {
			c.unclaim(s, old)
		}
	}
	c.ranges[cluster] = slices.Clone(ranges)
	for _, p := range ranges {
		c.claim(s, Entry{Prefix: p, IPEntry: datapath.IPEntry{Flags: datapath.IPCIDR}, Cluster: cluster, Source: KindRange})
	}
	c.claimHost()
}

// DeleteCluster forgets a cluster's number and ranges.
func (c *Cache) DeleteCluster(name string) {
	c.SetCluster(name, 0)
	c.SetRanges(name, nil)
}

func (c *Cache) claimTunnel(s source, n datapath.Node) {
	c.tunnels.set(n.Tunnel, s, n)
	c.dirtyNodes[n.Tunnel] = struct{}{}
}

func (c *Cache) unclaimTunnel(s source, a netip.Addr) {
	c.tunnels.remove(a, s)
	c.dirtyNodes[a] = struct{}{}
	if len(c.tunnels.all(a)) == 0 {
		delete(c.pathMTUs, a)
		delete(c.assumed, a)
	}
}

// SetPathMTU tells the size in bytes of the largest packets, the tunnel's headers
// included, that were seen to get through to a tunnel address. The node's row has
// it where that is less than what its record says, until told anew or the node
// goes; of an address that nobody has, nothing is kept.
func (c *Cache) SetPathMTU(a netip.Addr, mtu int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if mtu <= 0 || c.pathMTUs[a] == uint32(mtu) || len(c.tunnels.all(a)) == 0 {
		return
	}
	c.pathMTUs[a] = uint32(mtu)
	delete(c.assumed, a)
	c.dirtyNodes[a] = struct{}{}
}

// AssumePathMTUs tells the MTUs in bytes of tunnel addresses' rows before this
// process, from whenever their nodes are known: one that is less than the record's
// was measured, and stands until SetPathMTU or until the node goes. Call it before
// anything is published.
func (c *Cache) AssumePathMTUs(mtus map[netip.Addr]uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.Copy(c.assumed, mtus)
}

// PathAssumed reports whether a tunnel address's row has an MTU of
// AssumePathMTUs, which is to be measured again.
func (c *Cache) PathAssumed(a netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.assumed[a] != 0
}

// parsePrefix reads a prefix or an address, and refuses those that nobody in
// the mesh can have.
func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, aerr := netip.ParseAddr(s)
		if aerr != nil {
			return p, fmt.Errorf("%.64q is neither prefix nor address", s)
		}
		p = hostPrefix(a)
	}
	a := p.Addr()
	if p != p.Masked() || a.Is4In6() || p.Bits() == 0 || a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() {
		return p, fmt.Errorf("prefix %s cannot belong to the mesh", p)
	}
	return p, nil
}

func parseTunnel(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" || a.Is4In6() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
		return netip.Addr{}, fmt.Errorf("tunnel address %.64q is not one", s)
	}
	return a, nil
}
