// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// prepareDir makes the directory of namespaces what `ip netns add` makes of it
// at its first use: a shared mount of its own. If that came only later, it would
// lie over the namespaces that are there by then, and they could not be removed.
func prepareDir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the directory of namespaces: %w", err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open the directory of namespaces: %w", err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	err = unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // not a mount yet
		if err := unix.Mount(dir, dir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s: %w", dir, err)
		}
		err = unix.Mount("", dir, "none", unix.MS_SHARED|unix.MS_REC, "")
	}
	if err != nil {
		return fmt.Errorf("share %s: %w", dir, err)
	}
	return nil
}

// RetireDir takes the directory away when no namespace is left in it. While
// there is one it stays as it is.
func RetireDir(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) > 0 {
		return
	}
	// Both fail while somebody uses it, which is as it should be.
	_ = unix.Unmount(dir, 0)
	_ = os.Remove(dir)
}
