// SPDX-License-Identifier: Apache-2.0

// Package crashpoint kills a process just before it changes something for the
// n-th time, so that a test can try every point at which a crash may come. It
// needs nothing of the process: it watches its system calls by ptrace.
//
// Start with Watch; changes.go says what a change is.
package crashpoint

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// Watcher watches a process from when it is made until it ends or is stopped.
type Watcher struct {
	pid     int
	nth     int // change before which it is killed; 0: never
	stop    chan struct{}
	done    chan struct{}
	ready   chan error
	changes []string
	killed  bool
	err     error
}

// Watch begins to watch a process, which is killed before its n-th change; 0
// only counts. It returns when every change will be seen.
func Watch(pid, nth int) (*Watcher, error) {
	w := &Watcher{pid: pid, nth: nth, stop: make(chan struct{}), done: make(chan struct{}), ready: make(chan error, 1)}
	go func() {
		defer close(w.done)
		_ = nsthread.Run(func() error { // a tracer is a thread, which ends with this
			w.run()
			return nil
		})
	}()
	if err := <-w.ready; err != nil {
		return nil, fmt.Errorf("watch process %d: %w", pid, err)
	}
	return w, nil
}

// Stop ends the watch. It returns the changes that were seen and whether the
// process was killed; the last change did not happen then.
func (w *Watcher) Stop() (changes []string, killed bool, err error) {
	select {
	case <-w.done:
	default:
		close(w.stop)
		<-w.done
	}
	return w.changes, w.killed, w.err
}

// Done is closed when the process was killed, or ended.
func (w *Watcher) Done() <-chan struct{} { return w.done }

// urgent is the highest priority.
const urgent = -20

const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE

func ptrace(request, tid int, addr, data uintptr) (uintptr, error) {
	r, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(tid), addr, data, 0, 0)
	if errno != 0 {
		return r, errno
	}
	return r, nil
}

func threads(pid int) ([]int, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil, err
	}
	var out []int
	for _, e := range entries {
		if tid, err := strconv.Atoi(e.Name()); err == nil {
			out = append(out, tid)
		}
	}
	return out, nil
}

// seize takes all threads; those that come later are taken by their makers.
func (w *Watcher) seize() error {
	seen := map[int]bool{}
	for again := true; again; {
		again = false
		tids, err := threads(w.pid)
		if err != nil {
			return err
		}
		for _, tid := range tids {
			if seen[tid] {
				continue
			}
			seen[tid], again = true, true
			// Every system call of it waits for us: neither may wait for others.
			_ = unix.Setpriority(unix.PRIO_PROCESS, tid, urgent)
			_, err := ptrace(unix.PTRACE_SEIZE, tid, 0, options)
			if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EPERM) { // gone, or taken by its maker
				continue
			}
			if err != nil {
				return err
			}
			if err := unix.PtraceInterrupt(tid); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
	return nil
}

// run follows the threads until the process is gone or the watch is stopped. Only
// they are waited for, and not the end of the process: that is for its parent,
// which may be a thread of ours.
func (w *Watcher) run() {
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), urgent)
	if err := w.seize(); err != nil {
		w.ready <- err
		return
	}
	w.ready <- nil
	for {
		select {
		case <-w.stop:
			return // the thread ends, and the kernel lets its tracees go on
		default:
		}
		moved, gone := w.round()
		if gone || w.killed {
			return
		}
		if !moved {
			_ = unix.Nanosleep(&unix.Timespec{Nsec: idle}, nil)
		}
	}
}

// round looks at each thread once. gone tells that the process has ended.
func (w *Watcher) round() (moved, gone bool) {
	tids, err := threads(w.pid)
	if err != nil || len(tids) <= 1 && zombie(w.pid) {
		return false, true
	}
	for _, tid := range tids {
		if w.killed {
			break
		}
		if tid == w.pid && zombie(tid) {
			continue
		}
		var status unix.WaitStatus
		got, err := unix.Wait4(tid, &status, unix.WALL|unix.WNOTHREAD|unix.WNOHANG, nil)
		if err == nil && got == tid {
			moved = true
			if status.Stopped() {
				w.stopped(tid, status)
			}
		}
	}
	return moved, false
}

// zombie tells that a thread has ended and nobody has been told yet.
func zombie(tid int) bool {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", tid))
	_, rest, ok := bytes.Cut(raw, []byte(") "))
	return err != nil || !ok || rest[0] == 'Z' || rest[0] == 'X'
}

// idle is how long to sleep when no thread stops, in nanoseconds.
const idle = 50_000

// stopped lets a thread go on, or kills the process.
func (w *Watcher) stopped(tid int, status unix.WaitStatus) {
	signal := int(status.StopSignal())
	switch {
	case signal == int(unix.SIGTRAP)|0x80: // a system call begins or ends
		signal = 0
		if what := change(w.pid, tid); what != "" {
			w.changes = append(w.changes, what)
			if len(w.changes) == w.nth {
				w.killed = true
				_ = unix.Kill(w.pid, unix.SIGKILL)
				return // it is stopped, and is not let go on before it dies
			}
		}
	case int(status)>>16 != 0: // an event of ptrace
		signal = 0
	case signal == int(unix.SIGURG): // Go's preemption, which would interrupt slow calls for ever
		signal = 0
	}
	_ = unix.PtraceSyscall(tid, signal) // a thread that is killed cannot go on
}

// syscallInfo is struct ptrace_syscall_info at the entry of a system call.
type syscallInfo struct {
	op   uint8
	_    [3]uint8
	arch uint32
	_    [2]uint64 // instruction and stack pointer
	nr   uint64
	args [6]uint64
	_    [16]uint8
}

// entered is the call that a thread is about to make.
func entered(tid int) (info syscallInfo, ok bool) {
	n, err := ptrace(unix.PTRACE_GET_SYSCALL_INFO, tid, unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)))
	return info, err == nil && n > 0 && info.op == unix.PTRACE_SYSCALL_INFO_ENTRY
}
