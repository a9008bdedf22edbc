// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath/features"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/objects"
)

// Directories under the pin path.
const (
	mapsDir     = "maps"
	programsDir = "programs"
	linksDir    = "links"
	digestMap   = "build" // one element: the digest of what is loaded
)

// digest names a build with its constants and sizes.
type digest [sha256.Size]byte

// ErrIncompatible is wrapped by Open's error when a pinned map has a layout that
// cannot be turned into the one that this build wants.
var ErrIncompatible = ebpf.ErrMapIncompatible

// pinDirs are the directories that a pin path has.
func pinDirs() []string { return []string{mapsDir, programsDir, linksDir} }

// pinFiles are the pins that it has beside them.
func pinFiles() []string { return []string{digestMap, layoutsMap} }

func (d *Datapath) pinPath(dir, name string) string {
	return filepath.Join(d.cfg.PinPath, dir, name)
}

// ensureBPFFS mounts a BPF file system if the pin path is on none.
func ensureBPFFS(cfg Config) error {
	for dir := cfg.PinPath; ; dir = filepath.Dir(dir) {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err == nil {
			if st.Type == unix.BPF_FS_MAGIC {
				return nil
			}
			break
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	if err := os.MkdirAll(cfg.BPFFS, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", cfg.BPFFS, err)
	}
	if err := unix.Mount("bpffs", cfg.BPFFS, "bpf", 0, "mode=0700"); err != nil {
		return fmt.Errorf("mount a BPF file system on %s: %w", cfg.BPFFS, err)
	}
	return nil
}

// constants are what config.h declares.
type constants struct {
	NodeAddr4       [4]byte
	NodeAddr6       maps.Addr
	UnderlayIfIndex uint32
	HostIfIndex     uint32
	HostMAC         [6]byte
	NetMAC          [6]byte
	TunnelPort      maps.Port
	IdentityShift   uint32
	EncapFlags      uint64
	Decap6Flag      uint64
	Csum6Flag       uint64
	Maglev          uint32
	Masquerade      PortRange
	Masquerade6     maps.Addr
	TunnelIfIndex   uint32
	TunnelKeySize   uint32
}

const wireBits = 24

// sureMTU is SURE_MTU of bpf/lib/tunnel.h: what the programs send without asking.
const sureMTU = 576

func readConstants(cfg Config) (constants, error) {
	c := constants{
		NodeAddr4: cfg.NodeAddr.As4(), NodeAddr6: maps.AddrFrom(cfg.NodeAddr6), TunnelPort: maps.PortFrom(cfg.TunnelPort),
		IdentityShift: wireBits - cfg.ClusterBits,
	}
	underlay, err := netlink.LinkByName(cfg.UnderlayDevice)
	if err != nil {
		return c, fmt.Errorf("underlay device %s: %w", cfg.UnderlayDevice, err)
	}
	c.UnderlayIfIndex = uint32(underlay.Attrs().Index)
	if mtu := underlay.Attrs().MTU; mtu < sureMTU {
		return c, fmt.Errorf("underlay device %s: an MTU of %d is too small for a tunnel; set %d or more", cfg.UnderlayDevice, mtu, sureMTU)
	}
	host, err := netlink.LinkByName(cfg.HostDevice)
	if err != nil {
		return c, fmt.Errorf("host device %s: %w", cfg.HostDevice, err)
	}
	inner, err := netlink.LinkByName(cfg.NetDevice)
	if err != nil {
		return c, fmt.Errorf("host device %s: %w", cfg.NetDevice, err)
	}
	c.HostIfIndex = uint32(host.Attrs().Index)
	c.HostMAC = mac(host.Attrs().HardwareAddr)
	c.NetMAC = mac(inner.Attrs().HardwareAddr)
	eth, err := features.EncapEthernet()
	if err != nil {
		return c, err
	}
	if eth {
		c.EncapFlags = features.EncapL2Eth
	}
	decap, err := features.DecapIPv6()
	if err == nil && decap {
		c.Decap6Flag = features.DecapL3IPv6
	}
	csum, err2 := features.ChecksumIPv6()
	if err2 == nil && csum {
		c.Csum6Flag = features.ChecksumOfIPv6
	}
	return c, errors.Join(err, err2, c.readTunnel(cfg.TunnelDevice))
}

// readTunnel fills in what is of the device that makes the tunnel's headers.
func (c *constants) readTunnel(dev string) error {
	if dev == "" {
		return nil
	}
	l, err := netlink.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("tunnel device %s: %w", dev, err)
	}
	c.TunnelIfIndex = uint32(l.Attrs().Index)
	c.TunnelKeySize, err = features.TunnelKey()
	return err
}

func mac(a net.HardwareAddr) (m [6]byte) {
	copy(m[:], a)
	return m
}

// halves reads a MAC address as the three 16-bit words of config.h.
func halves(m [6]byte) (w [3]uint16) {
	for i := range w {
		w[i] = binary.NativeEndian.Uint16(m[2*i:])
	}
	return w
}

// buildSpec is the collection with sizes and constants set, and its digest.
func buildSpec(cfg Config) (*ebpf.CollectionSpec, digest, error) {
	c, err := readConstants(cfg)
	if err != nil {
		return nil, digest{}, err
	}
	spec, err := objects.LoadHawser()
	if err != nil {
		return nil, digest{}, fmt.Errorf("read objects: %w", err)
	}
	dropSockets(spec)
	if cfg.TunnelDevice == "" {
		dropTunnel(spec)
	}
	sizes := cfg.MapSizes.entries()
	for name, n := range sizes {
		if n != 0 {
			spec.Maps[name].MaxEntries = n
		}
	}
	spec.Maps["maglev"].InnerMap.MaxEntries = cfg.MapSizes.Maglev
	c.Maglev, c.Masquerade, c.Masquerade6 = cfg.MapSizes.Maglev, cfg.Masquerade, maps.AddrFrom(cfg.Masquerade6)
	err = errors.Join(
		spec.Variables["maglev_size"].Set(c.Maglev),
		spec.Variables["snat_first"].Set(uint32(c.Masquerade.First)),
		spec.Variables["snat_ports"].Set(uint32(c.Masquerade.Count)),
		spec.Variables["snat_addr6"].Set(c.Masquerade6),
		spec.Variables["node_addr4"].Set(binary.NativeEndian.Uint32(c.NodeAddr4[:])),
		spec.Variables["node_addr6"].Set(c.NodeAddr6),
		spec.Variables["underlay_ifindex"].Set(c.UnderlayIfIndex),
		spec.Variables["host_ifindex"].Set(c.HostIfIndex),
		spec.Variables["host_mac"].Set(halves(c.HostMAC)),
		spec.Variables["net_mac"].Set(halves(c.NetMAC)),
		spec.Variables["tunnel_port"].Set(binary.NativeEndian.Uint16(c.TunnelPort[:])),
		spec.Variables["tunnel_ifindex"].Set(c.TunnelIfIndex),
		spec.Variables["tunnel_key_size"].Set(c.TunnelKeySize),
		spec.Variables["identity_shift"].Set(c.IdentityShift),
		spec.Variables["encap_extra_flags"].Set(c.EncapFlags),
		spec.Variables["decap6_flag"].Set(c.Decap6Flag),
		spec.Variables["csum6_flag"].Set(c.Csum6Flag),
	)
	if err != nil {
		return nil, digest{}, fmt.Errorf("set constants: %w", err)
	}
	sum, err := specDigest(spec, c, sizes)
	return spec, sum, err
}

// specDigest covers everything that makes loaded programs different: their
// instructions, the constants, the maps' sizes.
func specDigest(spec *ebpf.CollectionSpec, c constants, sizes map[string]uint32) (digest, error) {
	h := sha256.New()
	for _, name := range sortedKeys(spec.Programs) {
		// References to maps and the like are text: their numbers are not
		// known yet.
		fmt.Fprintf(h, "%s\n%+v\n", name, spec.Programs[name].Instructions)
	}
	if err := json.NewEncoder(h).Encode([]any{c, sizes}); err != nil {
		return digest{}, fmt.Errorf("digest constants: %w", err)
	}
	return digest(h.Sum(nil)), nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func sortInfos(infos []maps.Info) {
	slices.SortFunc(infos, func(a, b maps.Info) int { return cmp.Compare(a.Name, b.Name) })
}

// pinnedMaps are the maps that outlive a process; constants do not, nor those of a move.
func pinnedMaps(spec *ebpf.CollectionSpec) map[string]*ebpf.MapSpec {
	out := map[string]*ebpf.MapSpec{}
	for name, m := range spec.Maps {
		if !strings.HasPrefix(name, ".") && !isBefore(name) {
			out[name] = m
		}
	}
	return out
}

func openPinnedMaps(pinPath string, spec *ebpf.CollectionSpec) (map[string]*ebpf.Map, error) {
	out := map[string]*ebpf.Map{}
	for name := range pinnedMaps(spec) {
		path := filepath.Join(pinPath, mapsDir, name)
		m, err := ebpf.LoadPinnedMap(path, nil)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			for _, m := range out {
				_ = m.Close()
			}
			return nil, fmt.Errorf("adopt map %s: %w", path, err)
		}
		out[name] = m
	}
	return out, nil
}

func openPinnedPrograms(pinPath string, spec *ebpf.CollectionSpec) (map[string]*ebpf.Program, error) {
	out := map[string]*ebpf.Program{}
	for name := range spec.Programs {
		p, err := ebpf.LoadPinnedProgram(filepath.Join(pinPath, programsDir, name), nil)
		if err != nil {
			for _, p := range out {
				_ = p.Close()
			}
			return nil, fmt.Errorf("adopt program %s: %w", name, err)
		}
		out[name] = p
	}
	return out, nil
}

func readDigest(pinPath string) (d digest) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(pinPath, digestMap), nil)
	if err != nil {
		return d
	}
	defer m.Close()
	_ = m.Lookup(uint32(0), &d)
	return d
}

func writeDigest(pinPath string, d digest) error {
	path := filepath.Join(pinPath, digestMap)
	m, err := ebpf.LoadPinnedMap(path, nil)
	if errors.Is(err, os.ErrNotExist) {
		m, err = ebpf.NewMap(&ebpf.MapSpec{
			Name: digestMap, Type: ebpf.Array, KeySize: 4, ValueSize: uint32(len(d)), MaxEntries: 1,
		})
		if err == nil {
			err = m.Pin(path)
		}
	}
	if err != nil {
		return fmt.Errorf("note build %s: %w", path, err)
	}
	defer m.Close()
	if err := m.Put(uint32(0), d); err != nil {
		return fmt.Errorf("note build %s: %w", path, err)
	}
	return nil
}
