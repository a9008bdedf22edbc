// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/lab/netns"
)

// leftovers lists everything on the machine that belongs to a lab, by name:
// namespaces, mounts, cgroups, processes, files. Pinned objects live on one of
// the mounts.
func leftovers(n names) []string {
	var out []string
	add := func(kind string, items []string, err error) {
		if err != nil {
			out = append(out, fmt.Sprintf("%s: %v", kind, err))
		}
		for _, i := range items {
			out = append(out, kind+" "+i)
		}
	}
	nss, err := netns.List(netnsDir, n.nsPrefix())
	add("namespace", nss, err)
	mounts, err := mountsBelow(n.dir())
	add("mount", mountPaths(mounts), err)
	if root, err := cgroupRoot(); err == nil {
		dir := filepath.Join(root, n.cgroupName())
		if _, err := os.Stat(dir); err == nil {
			add("cgroup", []string{dir}, nil)
		}
	}
	pids := lab(n).processes()
	add("process", describe(pids), nil)
	if _, err := os.Stat(n.dir()); err == nil {
		add("directory", []string{n.dir()}, nil)
	}
	return out
}

func mountPaths(ms []mount) []string {
	out := make([]string, len(ms))
	for i, m := range ms {
		out[i] = m.path
	}
	return out
}

// lab finds processes of a lab without its record.
type lab names

// processes are those in the lab's cgroups, those in its network namespaces
// (also started by other tools), and those with a path of the lab in their
// arguments, except this one and its ancestors.
func (l lab) processes() []int {
	n := names(l)
	found := map[int]bool{}
	if root, err := cgroupRoot(); err == nil {
		pids, _ := cgroupPIDs(filepath.Join(root, n.cgroupName())) // none when it is not there
		for _, p := range pids {
			found[p] = true
		}
	}
	inodes := netnsInodes(n)
	// A command line of the lab's programs has this in a path.
	mark := []byte(n.dir() + "/")
	entries, _ := os.ReadDir("/proc") // without it there is nothing to see
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if ino, ok := inode(filepath.Join("/proc", e.Name(), "ns/net")); ok && inodes[ino] {
			found[pid] = true
		}
		argv, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && isProgram(argv) && bytes.Contains(argv, mark) {
			found[pid] = true
		}
	}
	var out []int
	for pid := range found {
		if _, alive := startTime(pid); alive && !isSelfOrAncestor(pid) {
			out = append(out, pid)
		}
	}
	slices.Sort(out)
	return out
}

// isProgram says whether a command line starts one of Hawser's programs; a
// pager on a lab's log is none.
func isProgram(argv []byte) bool {
	first, _, _ := bytes.Cut(argv, []byte{0})
	return strings.HasPrefix(filepath.Base(string(first)), "hawser-")
}

func netnsInodes(n names) map[uint64]bool {
	out := map[uint64]bool{}
	paths, _ := netns.List(netnsDir, n.nsPrefix()) // reported by leftovers
	for _, p := range paths {
		// A file that is no namespace (yet) is on another file system, where the
		// same number may mean anything.
		var fs unix.Statfs_t
		if unix.Statfs(p, &fs) != nil || fs.Type != unix.NSFS_MAGIC {
			continue
		}
		if ino, ok := inode(p); ok {
			out[ino] = true
		}
	}
	return out
}

func inode(path string) (uint64, bool) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, false
	}
	return st.Ino, true
}

func isSelfOrAncestor(pid int) bool {
	for p := os.Getpid(); p > 1; p = parent(p) {
		if p == pid {
			return true
		}
	}
	return pid == 1
}

func parent(pid int) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(f) < 2 {
		return 0
	}
	ppid, _ := strconv.Atoi(f[1]) // 0 ends the walk
	return ppid
}

func describe(pids []int) []string {
	out := make([]string, len(pids))
	for i, pid := range pids {
		argv, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)) // gone meanwhile: no words
		words := strings.TrimSpace(strings.ReplaceAll(string(argv), "\x00", " "))
		const enough = 60
		out[i] = fmt.Sprintf("%d (%.*s)", pid, enough, words)
	}
	return out
}
