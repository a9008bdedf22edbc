// SPDX-License-Identifier: Apache-2.0

// Package crashpoint kills a process just before it changes something for the
// n-th time, so that a test can try every point at which a crash may come. It
// needs nothing of the process: it watches its system calls by ptrace.
//
// Start with Watch; changes.go says what a change is.
package crashpoint

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
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
// only counts. It returns when every change will be seen. The process is killed,
// too, when the watching process ends.
func Watch(pid, nth int) (*Watcher, error) {
	w := &Watcher{pid: pid, nth: nth, stop: make(chan struct{}), done: make(chan struct{}), ready: make(chan error, 1)}
	go func() {
		runtime.LockOSThread() // a tracer is a thread; it ends with the goroutine
		defer close(w.done)
		w.run()
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

const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_EXITKILL

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

// run follows the threads until the process is gone or the watch is stopped.
func (w *Watcher) run() {
	if err := w.seize(); err != nil {
		w.ready <- err
		return
	}
	w.ready <- nil
	for {
		select {
		case <-w.stop:
			w.err = w.leave()
			return
		default:
		}
		var status unix.WaitStatus
		tid, err := unix.Wait4(-1, &status, unix.WALL|unix.WNOTHREAD|unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.ECHILD):
			return // all threads are gone
		case errors.Is(err, unix.EINTR):
		case err != nil:
			w.err = fmt.Errorf("wait for process %d: %w", w.pid, err)
			return
		case tid == 0:
			runtime.Gosched()
			_ = unix.Nanosleep(&unix.Timespec{Nsec: int64(idle)}, nil)
		case status.Stopped():
			w.stopped(tid, status)
		}
	}
}

// idle is how long to sleep when no thread stops, in nanoseconds.
const idle = 50_000

// stopped lets a thread go on, or kills the process.
func (w *Watcher) stopped(tid int, status unix.WaitStatus) {
	signal := int(status.StopSignal())
	switch {
	case signal == int(unix.SIGTRAP)|0x80: // a system call begins or ends
		signal = 0
		if what := change(w.pid, tid); what != "" && !w.killed {
			w.changes = append(w.changes, what)
			if len(w.changes) == w.nth {
				w.killed = true
				_ = unix.Kill(w.pid, unix.SIGKILL)
				return
			}
		}
	case int(status)>>16 != 0: // an event of ptrace
		signal = 0
	}
	_ = unix.PtraceSyscall(tid, signal) // a thread that is killed cannot go on
}

// leave stops each thread once more and lets it go.
func (w *Watcher) leave() error {
	tids, err := threads(w.pid)
	if err != nil {
		return nil // it is gone
	}
	for _, tid := range tids {
		_ = unix.PtraceInterrupt(tid)
	}
	left := len(tids)
	for left > 0 {
		var status unix.WaitStatus
		tid, err := unix.Wait4(-1, &status, unix.WALL|unix.WNOTHREAD, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil // none is left
		}
		if !status.Stopped() {
			left--
			continue
		}
		signal := status.StopSignal()
		if int(signal) == int(unix.SIGTRAP)|0x80 || int(status)>>16 != 0 {
			signal = 0
		}
		if _, err := ptrace(unix.PTRACE_DETACH, tid, 0, uintptr(signal)); err == nil {
			left--
		}
	}
	return nil
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
