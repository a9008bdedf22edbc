// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"

	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/netdev"
	"github.com/hawser-mesh/hawser/internal/testutil/laterbuild"
)

// sameBuild changes nothing.
func sameBuild(*ebpf.CollectionSpec) {}

// upgradeWorld is a world with an open connection, whose flow and whose policy's
// hits must outlive upgrades of the first node.
type upgradeWorld struct {
	*world
	t    *testing.T
	conn net.Conn
	cfg  loader.Config
	n    int
}

func newUpgradeWorld(t *testing.T, attach string) *upgradeWorld {
	return newUpgradeWorldOf(t, attach, [2]string{})
}

func newUpgradeWorldOf(t *testing.T, attach string, tunnels [2]string) *upgradeWorld {
	w := &upgradeWorld{world: newWorldOf(t, attach, tunnels), t: t}
	serve(t, w.pods[1], 8080)
	w.conn = dial(t, w.pods[0], ips(1), 8080)
	w.cfg = w.agents[0].d.Config()
	key := maps.PolicyKey{RuleSet: 77, Identity: 5}
	if err := w.agents[0].d.Maps().Policy.Put(key, maps.PolicyEntry{Origin: 9, Deny: 1, Hits: 1234}); err != nil {
		t.Fatal(err)
	}
	return w
}

// open is a start of the first node's agent.
func (w *upgradeWorld) open(alter func(*ebpf.CollectionSpec), until int) (d *loader.Datapath, err error) {
	w.t.Helper()
	inNS(w.t, w.nodes[0].ns, func() error {
		d, err = loader.OpenOther(w.cfg, slog.New(slog.NewTextHandler(testWriter{w.t}, nil)), alter, until)
		return nil
	})
	return d, err
}

// must opens and checks that all that lives is there, in the kernel and for the
// connection.
func (w *upgradeWorld) must(alter func(*ebpf.CollectionSpec), until int) {
	w.t.Helper()
	before := w.flow()
	d, err := w.open(alter, until)
	if err != nil {
		w.t.Fatal(err)
	}
	defer d.Close()
	raw := make([]byte, d.Maps().Policy.ValueSize())
	if err := d.Maps().Policy.Lookup(maps.PolicyKey{RuleSet: 77, Identity: 5}, &raw); err != nil {
		w.t.Fatal(err)
	}
	if binary.NativeEndian.Uint32(raw) != 9 || raw[4] != 1 || binary.NativeEndian.Uint64(raw[8:]) != 1234 {
		w.t.Errorf("the policy entry became %x", raw)
	}
	w.n++
	if err := echo(w.conn, fmt.Sprintf("upgrade %d", w.n), 5*time.Second); err != nil {
		w.t.Fatal(err)
	}
	if until != loader.AllSteps {
		return
	}
	after := w.flow()
	if after.Created != before.Created || after.Packets[0] <= before.Packets[0] {
		w.t.Errorf("the flow was %+v and is %+v", before, after)
	}
	if left, _ := filepath.Glob(filepath.Join(w.nodes[0].pin, "maps", "*+new")); len(left) > 0 {
		w.t.Errorf("left over: %v", left)
	}
}

// flow is the connection's entry in the pinned map.
func (w *upgradeWorld) flow() maps.CTEntry {
	w.t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(w.nodes[0].pin, "maps", "ct4"), nil)
	if err != nil {
		w.t.Fatal(err)
	}
	defer m.Close()
	all, err := maps.Dump[maps.Tuple4, maps.CTEntry](m)
	if err != nil || len(all) != 1 {
		w.t.Fatalf("%d flows, %v; want the connection's", len(all), err)
	}
	for _, e := range all {
		return e
	}
	panic("unreachable")
}

// TestOtherLayoutIsTakenOver upgrades to a build with other layouts and programs
// and back, by links and by filters.
func TestOtherLayoutIsTakenOver(t *testing.T) {
	for _, attach := range []string{"", loader.AttachClsact} {
		t.Run("attach="+attach, func(t *testing.T) {
			w := newUpgradeWorld(t, attach)
			w.must(laterbuild.Alter, loader.AllSteps)
			w.must(laterbuild.Alter, loader.AllSteps)
			w.must(sameBuild, loader.AllSteps)
		})
	}
	t.Run("with a tunnel device", func(t *testing.T) {
		w := newUpgradeWorldOf(t, "", makes()["netdev"])
		w.must(laterbuild.Alter, loader.AllSteps)
		w.must(sameBuild, loader.AllSteps)
	})
}

// TestUpgradeJudgesAnew: what flows keep of the old programs' judgement of what leaves
// the node ends with them, and not when a start changes nothing.
func TestUpgradeJudgesAnew(t *testing.T) {
	w := newUpgradeWorld(t, "")
	m, err := ebpf.LoadPinnedMap(filepath.Join(w.nodes[0].pin, "maps", "ipcache_epochs"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	epoch := func() (n uint32) {
		t.Helper()
		if err := m.Lookup(uint32(maps.IPEpochPrefix), &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := epoch()
	w.must(laterbuild.Alter, loader.AllSteps)
	other := epoch()
	if other == before {
		t.Errorf("another build's programs: epoch still %d", before)
	}
	w.must(laterbuild.Alter, loader.AllSteps)
	if n := epoch(); n != other {
		t.Errorf("a start that changes nothing: epoch %d, want %d", n, other)
	}
}

// TestUpgradeThatWasKilledIsFinished kills it before and after the programs are
// replaced, and starts either build after it.
func TestUpgradeThatWasKilledIsFinished(t *testing.T) {
	w := newUpgradeWorld(t, "")
	for _, step := range []int{loader.Prepared, loader.Switched} {
		w.must(laterbuild.Alter, step)
		w.must(laterbuild.Alter, loader.AllSteps)
		w.must(sameBuild, step)
		w.must(sameBuild, loader.AllSteps)
		w.must(laterbuild.Alter, step)
		w.must(sameBuild, loader.AllSteps)
	}
}

// TestOtherMakeThatWasKilledIsFinished kills the change of who makes the tunnel's
// headers when the programs are replaced, and starts either make after it.
func TestOtherMakeThatWasKilledIsFinished(t *testing.T) {
	w := newUpgradeWorld(t, "")
	inNS(t, w.nodes[0].ns, func() error {
		_, err := netdev.EnsureTunnelDevice(t.Context(), netdev.TunnelConfig{Port: 8472})
		return err
	})
	for _, killed := range []string{netdev.TunnelDevice, ""} {
		for _, then := range []string{netdev.TunnelDevice, ""} {
			w.cfg.TunnelDevice = killed
			w.must(sameBuild, loader.Switched)
			w.cfg.TunnelDevice = then
			w.must(sameBuild, loader.AllSteps)
			if used := w.fromDevice(t); used != (then != "") {
				t.Errorf("%q after %q: from_tunnel is used: %v", then, killed, used)
			}
		}
	}
}

// TestKilledUpgradeKeepsIPv6Flows: the map of IPv6 flows is used only by programs
// that others jump to. What they opened since must be there after the next start.
func TestKilledUpgradeKeepsIPv6Flows(t *testing.T) {
	w := newUpgradeWorld(t, "")
	open := func(name string) *ebpf.Map {
		m, err := ebpf.LoadPinnedMap(filepath.Join(w.nodes[0].pin, "maps", name), nil)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	put := func(name string, port uint16) {
		m := open(name)
		defer m.Close()
		if err := m.Put(maps.Tuple6{Protocol: maps.ProtocolTCP, SourcePort: maps.PortFrom(port)}, maps.CTEntry{Created: uint32(port)}); err != nil {
			t.Fatal(err)
		}
	}
	for i, killed := range []func(*ebpf.CollectionSpec){laterbuild.Alter, sameBuild} {
		put("ct6", uint16(1+2*i))
		w.must(killed, loader.Switched)
		put("ct6+new", uint16(2+2*i))
		w.must(laterbuild.Alter, loader.AllSteps)
		m := open("ct6")
		for port := range uint16(2 + 2*i) {
			var e maps.CTEntry
			if err := m.Lookup(maps.Tuple6{Protocol: maps.ProtocolTCP, SourcePort: maps.PortFrom(port + 1)}, &e); err != nil || e.Created != uint32(port+1) {
				t.Errorf("round %d, the flow from port %d: %+v, %v", i, port+1, e, err)
			}
		}
		_ = m.Close()
	}
}

// TestMapFromBeforeTheNotes takes over a policy map whose entries had no hits.
func TestMapFromBeforeTheNotes(t *testing.T) {
	w := newUpgradeWorld(t, "")
	pin := filepath.Join(w.nodes[0].pin, "maps", "policy")
	old, err := ebpf.NewMap(&ebpf.MapSpec{Name: "policy", Type: ebpf.Hash, KeySize: 12, ValueSize: 8, MaxEntries: 64, Flags: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := errors.Join(os.Remove(pin), old.Pin(pin), os.Remove(filepath.Join(w.nodes[0].pin, "layouts")),
		old.Put(maps.PolicyKey{RuleSet: 77, Identity: 5}, [8]byte{9, 0, 0, 0, 1})); err != nil {
		t.Fatal(err)
	}
	d, err := w.open(sameBuild, loader.AllSteps)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var e maps.PolicyEntry
	if err := d.Maps().Policy.Lookup(maps.PolicyKey{RuleSet: 77, Identity: 5}, &e); err != nil || e != (maps.PolicyEntry{Origin: 9, Deny: 1}) {
		t.Errorf("%+v, %v", e, err)
	}
	if err := echo(w.conn, "from before", 5*time.Second); err != nil {
		t.Fatal(err)
	}
}

// TestLayoutThatCannotBeTakenOver is refused by the map's name, and changes
// nothing: traffic goes on, and the build that was there starts again.
func TestLayoutThatCannotBeTakenOver(t *testing.T) {
	w := newUpgradeWorld(t, "")
	before := w.agents[0].ids(t)
	for name, c := range map[string]struct {
		alter func(*ebpf.CollectionSpec)
		says  []string
	}{
		"a field in another's place": {func(s *ebpf.CollectionSpec) {
			v := *s.Maps["ct4"].Value.(*btf.Struct)
			v.Members = append([]btf.Member{}, v.Members...)
			v.Members[len(v.Members)-1].Name = "ended"
			s.Maps["ct4"].Value = &v
		}, []string{"map ct4", `"ended" is where "created" was`, "hawser cleanup"}},
		"other keys": {func(s *ebpf.CollectionSpec) {
			k := *s.Maps["endpoints"].Key.(*btf.Struct)
			k.Members = append([]btf.Member{}, k.Members...)
			k.Members[0].Name = "vrf"
			s.Maps["endpoints"].Key = &k
		}, []string{"map endpoints", "its keys were", "hawser cleanup"}},
		"too small for what lives": {func(s *ebpf.CollectionSpec) { s.Maps["identities"].MaxEntries = 1 },
			[]string{"move map identities", "into one for 1"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.open(c.alter, loader.AllSteps)
			if err == nil {
				t.Fatal("it was taken over")
			}
			for _, part := range c.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%v does not say %q", err, part)
				}
			}
			if left, _ := filepath.Glob(filepath.Join(w.nodes[0].pin, "maps", "*+new")); len(left) > 0 {
				t.Errorf("left over: %v", left)
			}
			if err := echo(w.conn, name, 5*time.Second); err != nil {
				t.Error(err)
			}
		})
	}
	if after := w.agents[0].ids(t); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("before %v\nafter %v", before, after)
	}
	w.must(sameBuild, loader.AllSteps)
}
