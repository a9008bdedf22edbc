// SPDX-License-Identifier: Apache-2.0

// Package nsthread runs code in other kernel namespaces: on an operating system
// thread that is changed and then thrown away, so that no other goroutine ever
// runs in the wrong namespace.
//
// Code run here must not start goroutines that rely on the namespace: they run
// on other threads.
package nsthread

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Run calls fn on a thread of its own, which ends with fn, and returns what fn
// returns. fn may change the thread's namespaces. The process's first thread is
// never used: /proc/self shows its namespaces.
func Run(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() != unix.Getpid() {
			done <- fn()
			return
		}
		// While this goroutine holds the first thread, another gets another.
		done <- Run(fn)
		runtime.UnlockOSThread()
	}()
	return <-done
}

// InNetns calls fn on a thread of its own in the network namespace at path.
func InNetns(path string, fn func() error) error {
	return Run(func() error {
		if err := EnterNetns(path); err != nil {
			return err
		}
		return fn()
	})
}

// EnterNetns moves the calling thread, which must be locked, into the network
// namespace at path.
func EnterNetns(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return nil
}

// CreateNetns makes a new network namespace that lives at path (a bind mount on
// an empty file) until DeleteNetns.
func CreateNetns(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return fmt.Errorf("create network namespace: %w", err)
	}
	f.Close()
	err = Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create network namespace %s: %w", path, err)
		}
		self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		if err := unix.Mount(self, path, "none", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind network namespace %s: %w", path, err)
		}
		return nil
	})
	if err != nil {
		_ = os.Remove(path) // the first error is the one to tell
	}
	return err
}

// DeleteNetns removes what CreateNetns made, also half of it. The kernel ends
// the namespace when its last process does. No namespace at path is no error.
func DeleteNetns(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmount network namespace %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("remove network namespace: %w", err)
	}
	return nil
}
