// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Whoever binds the directory after us, as `ip netns add` does at its first use,
// must not make our namespaces impossible to remove.
func TestLaterBindOfTheDirectory(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: makes network namespaces")
	}
	dir := filepath.Join(t.TempDir(), "netns")
	path := filepath.Join(dir, "one")
	if err := Create(path); err != nil {
		t.Fatal(err)
	}
	// What ip does: share it, and bind it first only if it is no mount yet.
	if err := unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		t.Errorf("ip would bind %s over its namespaces: %v", dir, err)
		_ = exec.Command("umount", "-R", dir).Run()
	}
	RetireDir(dir)
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the directory was retired with a namespace in it: %v", err)
	}
	if err := Delete(path); err != nil {
		t.Error(err)
	}
	RetireDir(dir)
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the empty directory is still there: %v", err)
	}
}
