// SPDX-License-Identifier: Apache-2.0

// Package crashpoint kills a process at the n-th change that it makes outside of
// itself, so that a test can try every point at which a crash may come. It needs
// nothing of the process and does not slow it down: a program in the kernel sees its
// system calls and sends the signal. The n-th change still happens, as the kernel
// looks for signals behind a call; nothing of the process runs after it.
//
// Start with Watch; changes.go says what a change is, program.go how it is seen.
package crashpoint

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// most is how many changes are noted.
const most = 1024

// Watcher watches a process from when it is made until it is stopped.
type Watcher struct {
	pid        int
	nth        uint64
	state, log *ebpf.Map
	prog       *ebpf.Program
	link       link.Link
	stop, done chan struct{}
}

// Watch begins to watch a process, which is killed at its n-th change; 0 only
// counts. It returns when every change will be seen. It takes root, and Linux 5.7.
func Watch(pid, nth int) (w *Watcher, err error) {
	w = &Watcher{pid: pid, nth: uint64(nth), stop: make(chan struct{}), done: make(chan struct{})}
	defer func() {
		if err != nil {
			w.close()
			err = fmt.Errorf("watch process %d: %w", pid, err)
		}
	}()
	var ns unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &ns); err != nil {
		return nil, err
	}
	if w.state, err = ebpf.NewMap(&ebpf.MapSpec{Name: "crash_state", Type: ebpf.Array, KeySize: 4, ValueSize: stateSize, MaxEntries: 1}); err != nil {
		return nil, err
	}
	if err = w.state.Put(uint32(0), [2]uint64{0, uint64(nth)}); err != nil {
		return nil, err
	}
	if w.log, err = ebpf.NewMap(&ebpf.MapSpec{Name: "crash_log", Type: ebpf.Array, KeySize: 4, ValueSize: 64, MaxEntries: most}); err != nil {
		return nil, err
	}
	if w.prog, err = program(w.state, w.log, pid, ns); err != nil {
		return nil, err
	}
	if w.link, err = link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sys_enter", Program: w.prog}); err != nil {
		return nil, err
	}
	go w.follow()
	return w, nil
}

// Stop ends the watch. It returns the changes that were seen and whether the
// process was killed, at the last of them.
func (w *Watcher) Stop() (changes []string, killed bool, err error) {
	close(w.stop)
	<-w.done
	defer w.close()
	if err := w.link.Close(); err != nil {
		return nil, false, err
	}
	n, err := w.count()
	if err != nil {
		return nil, false, err
	}
	killed = w.nth > 0 && n >= w.nth
	if killed {
		n = w.nth
	}
	for i := range min(n, most) {
		var e entry
		if err := w.log.Lookup(uint32(i), &e); err != nil {
			return changes, killed, err
		}
		changes = append(changes, e.String())
	}
	return changes, killed, nil
}

// Done is closed when the process was killed, or ended, or Stop was called.
func (w *Watcher) Done() <-chan struct{} { return w.done }

// look is how often the process is looked at; the kernel does not wait for it.
const look = 2 * time.Millisecond

func (w *Watcher) follow() {
	defer close(w.done)
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		n, err := w.count()
		if err != nil || w.nth > 0 && n >= w.nth {
			return
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", w.pid)); errors.Is(err, os.ErrNotExist) {
			return
		}
		select {
		case <-w.stop:
			return
		case <-tick.C:
		}
	}
}

func (w *Watcher) count() (uint64, error) {
	var state [2]uint64
	err := w.state.Lookup(uint32(0), &state)
	return state[0], err
}

func (w *Watcher) close() {
	if w.link != nil {
		_ = w.link.Close()
	}
	for _, m := range []*ebpf.Map{w.state, w.log} {
		if m != nil {
			_ = m.Close()
		}
	}
	if w.prog != nil {
		_ = w.prog.Close()
	}
}
