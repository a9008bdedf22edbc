// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// place is where a process of the lab runs.
type place struct {
	Netns  string `json:"netns"`            // path
	Cgroup string `json:"cgroup"`           // path
	Hosts  string `json:"hosts,omitempty"`  // file that it sees as /etc/hosts; "" is the host's
	Resolv string `json:"resolv,omitempty"` // file that it sees as /etc/resolv.conf; "" is the host's
	UTS    string `json:"uts,omitempty"`    // host name that it sees; "" is the host's
}

// Process is a process that the lab keeps: an agent, an API server, or a pod's.
type Process struct {
	Name  string   `json:"name"` // unique in the lab, also of its log
	Place place    `json:"place"`
	Argv  []string `json:"argv"`
	Log   string   `json:"log"`
	// PID is 0 before it was started. Started is the kernel's start time of
	// that pid, so that a reused pid is not mistaken for it.
	PID     int    `json:"pid,omitempty"`
	Started uint64 `json:"started,omitempty"`
}

// enter moves the calling thread, which must be thrown away afterwards, to the
// place; a program started from it is there from its first instruction.
func (p place) enter() error {
	if err := nsthread.EnterNetns(p.Netns); err != nil {
		return err
	}
	if p.Hosts == "" && p.Resolv == "" && p.UTS == "" {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("make mount and host name namespaces: %w", err)
	}
	// Unmounting on the host must still reach this copy, else the lab's mounts
	// would live as long as its pods.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("separate mounts: %w", err)
	}
	for _, f := range [...]struct{ from, to string }{{p.Hosts, "/etc/hosts"}, {p.Resolv, "/etc/resolv.conf"}} {
		if f.from == "" {
			continue
		}
		if err := unix.Mount(f.from, f.to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("put %s on %s, which must be there on the host, be it empty: %w", f.from, f.to, err)
		}
	}
	if p.UTS != "" {
		if err := unix.Sethostname([]byte(p.UTS)); err != nil {
			return fmt.Errorf("set host name: %w", err)
		}
	}
	return nil
}

// startIn starts a prepared command at a place; the caller waits for it.
func startIn(p place, cmd *exec.Cmd) error {
	cgroup, err := os.Open(p.Cgroup)
	if err != nil {
		return fmt.Errorf("open cgroup: %w", err)
	}
	defer cgroup.Close()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.UseCgroupFD = true
	cmd.SysProcAttr.CgroupFD = int(cgroup.Fd())
	return nsthread.Run(func() error {
		if err := p.enter(); err != nil {
			return err
		}
		return cmd.Start()
	})
}

// spawn starts the process in a session of its own, its output appended to its
// log, and returns it with PID set, and a channel that is closed when it ends.
func (p Process) spawn() (Process, <-chan struct{}, error) {
	if err := os.MkdirAll(filepath.Dir(p.Log), 0o755); err != nil {
		return p, nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	log, err := os.OpenFile(p.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return p, nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	defer log.Close()
	//nolint:noctx // it outlives whoever started it
	cmd := exec.Command(p.Argv[0], p.Argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := startIn(p.Place, cmd); err != nil {
		return p, nil, fmt.Errorf("start %s: %w", p.Name, err)
	}
	p.PID = cmd.Process.Pid
	p.Started, _ = startTime(p.PID)
	done := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended is in its log
		close(done)
	}()
	return p, done, nil
}

// alive reports whether the very process that was started still runs.
func (p Process) alive() bool {
	if p.PID == 0 {
		return false
	}
	started, ok := startTime(p.PID)
	return ok && started == p.Started
}

// startTime is the kernel's start time of a process, in clock ticks since boot;
// not ok when there is none, or only its corpse.
func startTime(pid int) (ticks uint64, ok bool) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// pid (name) state …: the name may hold anything, also ')'.
	i := bytes.LastIndexByte(data, ')')
	if i < 0 {
		return 0, false
	}
	f := strings.Fields(string(data[i+1:]))
	const state, start = 0, 19 // of proc(5)'s fields 3 and 22
	if len(f) <= start || f[state] == "Z" || f[state] == "X" {
		return 0, false
	}
	ticks, err = strconv.ParseUint(f[start], 10, 64)
	return ticks, err == nil
}

// signal sends a signal to the process if it still is the one that was started.
func (p Process) signal(sig syscall.Signal) error {
	if !p.alive() {
		return nil
	}
	if err := syscall.Kill(p.PID, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("signal %s (pid %d): %w", p.Name, p.PID, err)
	}
	return nil
}

// logTail is the last lines of a log.
func logTail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
