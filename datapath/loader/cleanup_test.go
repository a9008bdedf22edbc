// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A directory that no agent made for its pins is never removed.
func TestNoAgentsDirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Cleanup(filepath.Dir(file)); err == nil || !strings.Contains(err.Error(), "on no BPF file system") {
		t.Errorf("files: %v", err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Errorf("it was removed: %v", err)
	}
	for _, none := range []string{t.TempDir(), filepath.Join(t.TempDir(), "nowhere")} {
		if err := checkPins(none); err != nil {
			t.Errorf("nothing in it: %v", err)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a BPF file system")
	}
	fs := t.TempDir()
	if err := unix.Mount("bpffs", fs, "bpf", 0, "mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(fs, unix.MNT_DETACH) })
	one := filepath.Join(fs, "hawser", "n1")
	for _, dir := range pinDirs() {
		if err := os.MkdirAll(filepath.Join(one, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for dir, has := range map[string]string{fs: "hawser", filepath.Dir(one): "n1"} {
		if err := Cleanup(dir); err == nil || !strings.Contains(err.Error(), "has a directory "+has) {
			t.Errorf("above an agent's: %v", err)
		}
	}
	if _, err := os.Stat(one); err != nil {
		t.Errorf("it was removed: %v", err)
	}
	pinMap(t, filepath.Join(one, digestMap))
	if err := Cleanup(one); err != nil {
		t.Errorf("an agent's: %v", err)
	}
	if _, err := os.Stat(one); err == nil {
		t.Error("an agent's is left")
	}
	for name, want := range map[string]string{"theirs": "has a pin theirs", digestMap: "has none of the directories"} {
		testForeignPin(t, filepath.Join(fs, "globals", name), want)
	}
	testForeignPin(t, filepath.Join(fs, "mixed", "theirs"), "has a pin theirs", mapsDir)
}

// testForeignPin has Cleanup refuse a directory with a pin, beside directories.
func testForeignPin(t *testing.T, pin, want string, dirs ...string) {
	t.Helper()
	for _, dir := range append(dirs, "") {
		if err := os.MkdirAll(filepath.Join(filepath.Dir(pin), dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	pinMap(t, pin)
	if err := Cleanup(filepath.Dir(pin)); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("somebody's pin: %v, want %q", err, want)
	}
	if err := os.Remove(pin); err != nil {
		t.Errorf("it was removed: %v", err)
	}
}

func pinMap(t *testing.T, path string) {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Pin(path); err != nil {
		t.Fatal(err)
	}
}
