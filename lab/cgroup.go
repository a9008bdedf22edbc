// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroupRoot is where cgroup2 is mounted: alone, or beside version 1.
func cgroupRoot() (string, error) {
	mounts, err := mountsBelow("/sys/fs/cgroup")
	if err != nil {
		return "", err
	}
	for _, m := range mounts {
		if m.fstype == "cgroup2" {
			return m.path, nil
		}
	}
	return "", errors.New("cgroup2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup")
}

// makeCgroup makes a directory below the lab's cgroup and those above it.
func makeCgroup(path string) error {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	return nil
}

// killCgroup ends every process at and below a cgroup and waits until the
// kernel says that none is left.
func killCgroup(ctx context.Context, path string) error {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	kill := filepath.Join(path, "cgroup.kill")
	if err := os.WriteFile(kill, []byte("1"), 0o200); err != nil {
		// Kernels before 5.14 have no such file.
		if err := killEach(path); err != nil {
			return err
		}
	}
	return poll(ctx, "processes of "+path+" to end", func() (bool, error) {
		populated, err := cgroupPopulated(path)
		return !populated, err
	})
}

func killEach(path string) error {
	pids, err := cgroupPIDs(path)
	for _, pid := range pids {
		err = errors.Join(err, ignore(unix.Kill(pid, unix.SIGKILL), unix.ESRCH))
	}
	return err
}

// cgroupPIDs lists the processes at and below a cgroup.
func cgroupPIDs(path string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(path, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return ignore(err, os.ErrNotExist)
		}
		data, err := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		if err != nil {
			return ignore(err, os.ErrNotExist)
		}
		for f := range strings.FieldsSeq(string(data)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list processes of cgroup: %w", err)
	}
	return pids, nil
}

func cgroupPopulated(path string) (bool, error) {
	data, err := os.ReadFile(filepath.Join(path, "cgroup.events"))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read cgroup: %w", err)
	}
	return strings.Contains(string(data), "populated 1"), nil
}

// removeCgroup removes a cgroup and all below it, and counts them; processes in
// them make it fail.
func removeCgroup(path string) (count int, err error) {
	var dirs []string
	err = filepath.WalkDir(path, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		return ignore(err, os.ErrNotExist)
	})
	for _, d := range slices.Backward(dirs) {
		err = errors.Join(err, ignore(unix.Rmdir(d), unix.ENOENT))
	}
	if err != nil {
		return 0, fmt.Errorf("remove cgroup %s: %w", path, err)
	}
	return len(dirs), nil
}

// ignore is err unless it is the one that does not matter.
func ignore(err, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}
