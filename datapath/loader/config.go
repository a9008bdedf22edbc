// SPDX-License-Identifier: Apache-2.0

// Package loader loads the programs once per node, pins them and their maps,
// and attaches them to devices. A second Open with the same pin path adopts what
// is there, so that an agent's restart is not seen by the traffic.
//
// Start with Open. What is in the maps is datapath/reconcile's business. Pins
// live under Config.PinPath: maps/, programs/, links/.
package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/hawser-mesh/hawser/loadbalancer/maglev"
)

// Config says what to load and where to pin it. Open and the Attach methods must
// run in the network namespace that has the devices.
type Config struct {
	// PinPath is the node's directory in a BPF file system, such as
	// /sys/fs/bpf/hawser/node1. Two agents on one kernel have different ones.
	PinPath string
	// BPFFS is where to mount a BPF file system when PinPath is not on one; it
	// must be PinPath or above it. Empty means /sys/fs/bpf when PinPath is
	// below that, else PinPath's parent.
	BPFFS string
	// UnderlayDevice carries tunnel packets; NodeAddr is its address, the
	// tunnel endpoint.
	UnderlayDevice string
	NodeAddr       netip.Addr
	// NodeAddr6 is the node's address in the mesh for IPv6, from which the host
	// speaks to pods; the zero Addr: it has none, and pods have no IPv6.
	NodeAddr6 netip.Addr
	// TunnelPort is the UDP port of VXLAN, 8472 by default.
	TunnelPort uint16
	// TunnelDevice is the node's collect-metadata VXLAN device, which writes the
	// tunnel's headers and takes them off; it must be there before Open. Empty: the
	// programs do that.
	TunnelDevice string
	// HostDevice and NetDevice are the two ends of the host veth: the host's
	// routes to pods point into HostDevice, from_host is on NetDevice.
	HostDevice string
	NetDevice  string
	// ClusterBits is how many of the identity's 24 bits name the cluster.
	ClusterBits uint32
	// Masquerade are the ports of NodeAddr that flows of pods to the outside
	// get; the zero range lets them keep their addresses.
	Masquerade PortRange
	// Masquerade6 is the node's address on the underlay for flows of IPv6 to the
	// outside, which get ports of the same range; the zero Addr lets them keep their
	// addresses.
	Masquerade6 netip.Addr
	MapSizes    MapSizes
	// Attach is AttachTCX or AttachClsact; empty takes TCX where the kernel
	// has it.
	Attach string
}

// PortRange is Count ports from First on.
type PortRange struct{ First, Count uint16 }

// MasqueradePorts is a range that nothing else uses: it is below those that
// Linux gives out (net.ipv4.ip_local_port_range) and Kubernetes' node ports.
func MasqueradePorts() PortRange { return PortRange{First: 16384, Count: 13616} }

// Ways to attach a program to a device.
const (
	AttachTCX    = "tcx"    // links, replaced without a gap (Linux 6.6)
	AttachClsact = "clsact" // filters
)

// MapSizes are the capacities of maps in entries; zero keeps the default.
type MapSizes struct {
	Devices   uint32 // interface indexes that are looked up directly
	Endpoints uint32
	IPCache   uint32
	Prefixes  uint32
	Nodes     uint32
	Identity  uint32
	RuleSets  uint32
	Policy    uint32
	Conntrack uint32
	HalfOpen  uint32
	// Conntrack6 and HalfOpen6 are for flows of IPv6.
	Conntrack6 uint32
	HalfOpen6  uint32
	Services   uint32
	Slots      uint32
	Backends   uint32
	Clients    uint32 // that stay with a backend
	// Maglev is how many places the table of a service has: a prime. All
	// nodes of a mesh must have the same.
	Maglev uint32
	SNAT   uint32 // masqueraded flows that are established
	// SNATOpen is for half-open ones, of which the oldest make room.
	SNATOpen uint32
	// SNAT6 and SNATOpen6 are for flows of IPv6.
	SNAT6     uint32
	SNATOpen6 uint32
	Sockets   uint32 // connected to services, or sending to them
	Events    uint32 // bytes, a power of two and a multiple of the page size
}

// SmallMaps are capacities for many agents on one machine.
func SmallMaps() MapSizes {
	return MapSizes{
		Devices: 1024, Endpoints: 1024, IPCache: 16384, Prefixes: 4096, Nodes: 1024,
		Identity: 16384, RuleSets: 4096, Policy: 32768, Conntrack: 32768, HalfOpen: 8192,
		Conntrack6: 16384, HalfOpen6: 4096,
		Services: 4096, Slots: 32768, Backends: 16384, Sockets: 8192, SNAT: 16384, SNATOpen: 8192, SNAT6: 8192, SNATOpen6: 4096, Clients: 8192, Maglev: maglev.SmallSize, Events: 256 << 10,
	}
}

// entries maps the sizes to map names.
func (s MapSizes) entries() map[string]uint32 {
	return map[string]uint32{
		"ep_devices": s.Devices, "ep_strays": s.Endpoints, "endpoints": s.Endpoints,
		"ipcache": s.IPCache, "ipcache_prefix": s.Prefixes, "nodes": s.Nodes,
		"node_addrs": s.Nodes, "identities": s.Identity, "rule_sets": s.RuleSets,
		"policy": s.Policy, "ct4": s.Conntrack, "ct4_open": s.HalfOpen,
		"ct6": s.Conntrack6, "ct6_open": s.HalfOpen6,
		"services": s.Services, "service_epochs": s.Services, "service_slots": s.Slots,
		"backends": s.Backends, "sock_peers": s.Sockets, "sock_links": s.Sockets, "snat4": s.SNAT, "snat4_open": s.SNATOpen, "snat6": s.SNAT6, "snat6_open": s.SNATOpen6, "affinities": s.Clients, "maglev": s.Services, "events": s.Events,
	}
}

const (
	defaultTunnelPort  = 8472
	defaultClusterBits = 8
	defaultBPFFS       = "/sys/fs/bpf"
)

func (c Config) withDefaults() Config {
	if c.TunnelPort == 0 {
		c.TunnelPort = defaultTunnelPort
	}
	if c.MapSizes.Maglev == 0 {
		c.MapSizes.Maglev = maglev.DefaultSize
	}
	if c.ClusterBits == 0 {
		c.ClusterBits = defaultClusterBits
	}
	if c.HostDevice == "" {
		c.HostDevice = "hawser_host"
	}
	if c.NetDevice == "" {
		c.NetDevice = "hawser_net"
	}
	if c.BPFFS == "" {
		c.BPFFS = filepath.Dir(filepath.Clean(c.PinPath))
		if strings.HasPrefix(c.PinPath, defaultBPFFS+"/") {
			c.BPFFS = defaultBPFFS
		}
	}
	return c
}

// Validate reports every problem at once.
func (c Config) Validate() error {
	var errs []error
	if !filepath.IsAbs(c.PinPath) {
		errs = append(errs, fmt.Errorf("pin path %q: must be absolute", c.PinPath))
	}
	if rel, err := filepath.Rel(c.BPFFS, c.PinPath); err != nil || strings.HasPrefix(rel, "..") {
		errs = append(errs, fmt.Errorf("bpffs %q: must contain the pin path %q", c.BPFFS, c.PinPath))
	}
	if c.UnderlayDevice == "" {
		errs = append(errs, errors.New("underlay device: must be named"))
	}
	if !c.NodeAddr.Is4() {
		errs = append(errs, fmt.Errorf("node address %q: must be IPv4", c.NodeAddr))
	}
	if a := c.NodeAddr6; a.IsValid() && (!a.Is6() || a.Is4In6() || !a.IsGlobalUnicast()) {
		errs = append(errs, fmt.Errorf("node address %q of the mesh: must be a global or unique local IPv6 address", a))
	}
	if c.ClusterBits < 8 || c.ClusterBits > 10 {
		errs = append(errs, fmt.Errorf("cluster bits %d: must be 8, 9 or 10", c.ClusterBits))
	}
	if int(c.Masquerade.First)+int(c.Masquerade.Count) > 1<<16 || c.Masquerade.Count > 0 && c.Masquerade.First == 0 {
		errs = append(errs, fmt.Errorf("masquerade ports %d+%d: must be in 1 to 65535", c.Masquerade.First, c.Masquerade.Count))
	}
	if a := c.Masquerade6; a.IsValid() && (!a.Is6() || a.Is4In6() || !a.IsGlobalUnicast()) {
		errs = append(errs, fmt.Errorf("masquerade address %q: must be a global or unique local IPv6 address", a))
	}
	switch c.Attach {
	case "", AttachTCX, AttachClsact:
	default:
		errs = append(errs, fmt.Errorf("attach %q: must be %s or %s", c.Attach, AttachTCX, AttachClsact))
	}
	return errors.Join(errs...)
}
