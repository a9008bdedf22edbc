// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath/loader"
)

// Other constants mean other programs on the same links and maps, under an open
// connection; maps of other sizes take the place of those before.
func TestProgramsAreReplacedInPlace(t *testing.T) {
	w := newWorld(t)
	serve(t, w.pods[1], 8080)
	c := dial(t, w.pods[0], ips(1), 8080)
	c6 := dial(t, w.pods[0], ip6s(1), 8080)
	before := w.agents[0].ids(t)
	oldSlots := w.agents[0].slots(t)
	cfg := w.agents[0].d.Config()
	reopen := func(change func(*loader.Config)) (d *loader.Datapath, err error) {
		other := cfg
		change(&other)
		inNS(t, w.nodes[0].ns, func() error {
			d, err = loader.Open(other, slog.New(slog.NewTextHandler(testWriter{t}, nil)))
			return nil
		})
		return d, err
	}
	d, err := reopen(func(c *loader.Config) { c.Masquerade = loader.MasqueradePorts() })
	if err != nil {
		t.Fatal(err)
	}
	replaced := &agent{d: d}
	after, newSlots := replaced.ids(t), replaced.slots(t)
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	last := len(before) - 1
	if !slices.Equal(before[:last], after[:last]) || before[last] == after[last] {
		t.Errorf("before %v\nafter %v", before, after)
	}
	for slot, id := range oldSlots {
		if id == 0 || newSlots[slot] == 0 || newSlots[slot] == id {
			t.Errorf("slot %d had program %d and has %d", slot, id, newSlots[slot])
		}
	}
	if err := errors.Join(echo(c, "replaced", 5*time.Second), echo(c6, "replaced", 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	d, err = reopen(func(c *loader.Config) { c.MapSizes.Conntrack = 1 << 16 })
	if err != nil {
		t.Fatal(err)
	}
	if n := d.Maps().Ct4.MaxEntries(); n != 1<<16 {
		t.Errorf("conntrack has room for %d", n)
	}
	if err := errors.Join(echo(c, "other sizes", 5*time.Second), d.Close()); err != nil {
		t.Fatal(err)
	}
}

// slots are the ids of the programs that others jump to.
func (a *agent) slots(t *testing.T) (ids [3]uint32) {
	t.Helper()
	for i := range ids {
		if err := a.d.Maps().Slots.Lookup(uint32(i), &ids[i]); err != nil {
			t.Fatalf("slot %d: %v", i, err)
		}
	}
	return ids
}

func TestConfigReportsAllProblems(t *testing.T) {
	err := loader.Config{PinPath: "relative", BPFFS: "/elsewhere", ClusterBits: 7}.Validate()
	for _, part := range []string{"relative", "underlay device", "node address", "cluster bits 7"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v does not mention %q", err, part)
		}
	}
}

// The programs do not ask whether a small packet fits; a device that may not take
// one is no underlay.
func TestNarrowUnderlayIsRefused(t *testing.T) {
	needRoot(t)
	ns := newNS(t)
	fs := filepath.Join(t.TempDir(), "bpf")
	t.Cleanup(func() { _ = unix.Unmount(fs, unix.MNT_DETACH) })
	inNS(t, ns, func() error {
		err := veth("eth0", "wire", ns, 575)
		if err != nil {
			return err
		}
		d, err := loader.Open(loader.Config{
			PinPath: filepath.Join(fs, "n"), BPFFS: fs, UnderlayDevice: "eth0", NodeAddr: netip.MustParseAddr("192.0.2.1"),
		}, slog.New(slog.DiscardHandler))
		if err == nil {
			_ = d.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "MTU of 575") {
			t.Errorf("opened with error %v", err)
		}
		return nil
	})
}
