// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

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
	if err := Cleanup(one); err != nil {
		t.Errorf("an agent's: %v", err)
	}
	if _, err := os.Stat(one); err == nil {
		t.Error("an agent's is left")
	}
}
