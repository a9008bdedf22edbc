// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/hawser-mesh/hawser/datapath/features"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/objects"
)

// Datapath is the loaded programs and maps of a node.
type Datapath struct {
	cfg     Config
	log     *slog.Logger
	maps    *objects.HawserMaps
	progs   *objects.HawserPrograms
	pins    map[string]*ebpf.Map // by name, what is pinned
	tcx     bool
	sockets bool // the kernel has the hooks of sock_*
	adopted bool

	mu sync.Mutex // serialises links

	flowsMu sync.Mutex
	flows   FlowReport

	settleMu  sync.Mutex // below mu
	unsettled unsettled
}

// Open adopts what is pinned under cfg.PinPath, or loads and pins it. When the
// programs or their constants differ from what is pinned, each attached program
// is replaced at once. Maps are kept; of one whose layout or size differs all
// elements are moved to a new one. It needs root, blocks for up to some seconds
// while the verifier works, and deletes no entry of any map.
func Open(cfg Config, log *slog.Logger) (*Datapath, error) {
	cfg = cfg.withDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("datapath config: %w", err)
	}
	if err := ensureBPFFS(cfg); err != nil {
		return nil, err
	}
	for _, dir := range pinDirs() {
		if err := os.MkdirAll(filepath.Join(cfg.PinPath, dir), 0o700); err != nil {
			return nil, fmt.Errorf("make pin directory: %w", err)
		}
	}
	tcx, err := useTCX(cfg.Attach)
	if err != nil {
		return nil, err
	}
	spec, sum, err := buildSpec(cfg)
	if err != nil {
		return nil, err
	}
	d := &Datapath{cfg: cfg, log: log, tcx: tcx, sockets: hasSockets(spec)}
	if err := d.load(spec, sum); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *Datapath) load(spec *ebpf.CollectionSpec, sum digest) error {
	notes, err := openLayouts(d.cfg.PinPath)
	if err != nil {
		return err
	}
	defer func() { _ = notes.close() }()
	if err := d.finishMoves(notes); err != nil {
		return err
	}
	pinned, err := openPinnedMaps(d.cfg.PinPath, spec)
	if err != nil {
		return err
	}
	d.pins, d.adopted = pinned, len(pinned) > 0
	moves, err := plan(pinned, spec, notes)
	if err != nil {
		return fmt.Errorf("adopt the maps in %s: %w; start the build that made them, or give up all state and open connections: "+
			"hawser cleanup --pin-path %s, then start the agent again", d.cfg.PinPath, err, d.cfg.PinPath)
	}
	if len(pinned) == len(pinnedMaps(spec)) && len(moves) == 0 && readDigest(d.cfg.PinPath) == sum {
		progs, err := openPinnedPrograms(d.cfg.PinPath, spec)
		if err == nil {
			return d.take(pinned, progs)
		}
		d.log.Warn("pinned programs are unusable, loading them again", "error", err)
	}
	if len(moves) > 0 {
		d.log.Info("maps have another layout or size in this build; their elements are moved", "maps", moveNames(moves))
	}
	return d.upgrade(spec, sum, moves, notes)
}

// take fills the typed sets.
func (d *Datapath) take(m map[string]*ebpf.Map, progs map[string]*ebpf.Program) error {
	d.maps = &objects.HawserMaps{
		Backends: m["backends"], Ct4: m["ct4"], Ct4Open: m["ct4_open"], Ct6: m["ct6"], Ct6Open: m["ct6_open"], Fragments6: m["fragments6"],
		Endpoints: m["endpoints"], EpDevices: m["ep_devices"], EpStrays: m["ep_strays"],
		EventBuckets: m["event_buckets"], Events: m["events"], Identities: m["identities"],
		Ipcache: m["ipcache"], IpcacheEpochs: m["ipcache_epochs"],
		IpcachePrefix: m["ipcache_prefix"], Metrics: m["metrics"], NodeAddrs: m["node_addrs"],
		Nodes: m["nodes"], Policy: m["policy"], RuleSets: m["rule_sets"],
		ServiceEpochs: m["service_epochs"], ServiceSlots: m["service_slots"],
		Scratch: m["scratch"], Scratch6: m["scratch6"], Slots: m["slots"],
		Watched: m["watched"], Snat4: m["snat4"], Snat4Open: m["snat4_open"], Snat6: m["snat6"], Snat6Open: m["snat6_open"], Affinities: m["affinities"], Fragments: m["fragments"], Maglev: m["maglev"],
		Services: m["services"], SockPeers: m["sock_peers"], SockLinks: m["sock_links"], Vteps: m["vteps"],
	}
	d.progs = &objects.HawserPrograms{
		Clock: progs["clock"], FromHost: progs["from_host"], FromHost6: progs["from_host6"],
		FromOverlay: progs["from_overlay"], FromOverlay6: progs["from_overlay6"],
		FromPod: progs["from_pod"], FromPod6: progs["from_pod6"], FromStack: progs[fromStack],
		FromTunnel: progs[fromTunnel], FromTunnel6: progs[fromTunnel6],
		SockClosed4: progs["sock_closed4"], SockConnect4: progs["sock_connect4"], SockPeername4: progs["sock_peername4"],
		SockRecvmsg4: progs["sock_recvmsg4"], SockSendmsg4: progs["sock_sendmsg4"],
		SockConnect6: progs["sock_connect6"], SockPeername6: progs["sock_peername6"],
		SockRecvmsg6: progs["sock_recvmsg6"], SockSendmsg6: progs["sock_sendmsg6"],
	}
	return nil
}

// initRuleSets makes the rule set that enforces nothing usable; all others are
// refused by the programs until they are written.
func (d *Datapath) initRuleSets() error {
	var word uint64
	if err := d.maps.RuleSets.Lookup(uint32(0), &word); err != nil {
		return fmt.Errorf("read rule set 0: %w", err)
	}
	if maps.RulesFrom(word).Valid {
		return nil
	}
	word = maps.Rules{Valid: true, Epoch: 1}.Word()
	if err := d.maps.RuleSets.Put(uint32(0), word); err != nil {
		return fmt.Errorf("write rule set 0: %w", err)
	}
	return nil
}

// Maps are the node's maps. They are closed by Close.
func (d *Datapath) Maps() *objects.HawserMaps { return d.maps }

// Programs are the node's programs. They are closed by Close.
func (d *Datapath) Programs() *objects.HawserPrograms { return d.progs }

// Config is what the datapath was opened with, with defaults filled in.
func (d *Datapath) Config() Config { return d.cfg }

// Adopted reports whether Open took over pinned maps.
func (d *Datapath) Adopted() bool { return d.adopted }

// AttachMode is AttachTCX or AttachClsact.
func (d *Datapath) AttachMode() string {
	if d.tcx {
		return AttachTCX
	}
	return AttachClsact
}

func useTCX(attach string) (bool, error) {
	if attach == AttachClsact {
		return false, nil
	}
	has, err := features.TCX()
	if err == nil && !has && attach == AttachTCX {
		err = errors.New("attach tcx: this kernel has no TCX links (Linux 6.6 has); use clsact")
	}
	return has, err
}

// ListMaps describes all pinned maps. It walks the hashes.
func (d *Datapath) ListMaps() ([]maps.Info, error) {
	var out []maps.Info
	for name, m := range d.pins {
		info, err := maps.Describe(name, d.pinPath(mapsDir, name), m)
		if err != nil {
			return nil, err
		}
		out = append(out, info)
	}
	sortInfos(out)
	return out, nil
}

// Close releases this process's handles. Programs stay attached, maps stay
// pinned, traffic goes on.
func (d *Datapath) Close() error {
	var errs []error
	for _, m := range d.pins {
		errs = append(errs, m.Close())
	}
	if d.progs != nil {
		errs = append(errs, d.progs.Close())
	}
	return errors.Join(errs...)
}
