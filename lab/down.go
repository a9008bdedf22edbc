// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/lab/netns"
)

// How long Down waits for others: a running command on the lab, pods leaving
// through the plugin, processes to end.
const (
	lockWait = 10 * time.Second
	leaveFor = 3 * time.Second
	killWait = 10 * time.Second
)

// Removed counts what Down took away.
type Removed struct {
	Namespaces, Processes, Mounts, Cgroups int
}

// Down removes a lab, also one that is half made or half removed and one
// without a record, and proves that nothing is left: the error names what is.
// Removing a lab that is not there is no error and removes nothing.
func Down(ctx context.Context, name string) (Removed, error) {
	var done Removed
	if err := CheckName(name); err != nil {
		return done, err
	}
	n := names{name}
	unlock, err := lockLab(withTimeout(ctx, lockWait), n)
	if err != nil {
		return done, err
	}
	defer unlock()
	if l, err := Open(name); err == nil {
		l.removePods(withTimeout(ctx, leaveFor))
	}
	errs := []error{
		n.removeProcesses(ctx, &done),
		n.removeNamespaces(&done),
		n.removeCgroups(&done),
		n.removeFiles(&done),
	}
	if left := leftovers(n); len(left) > 0 {
		errs = append(errs, fmt.Errorf("left behind:\n  %s", strings.Join(left, "\n  ")))
	}
	if err := errors.Join(errs...); err != nil {
		return done, fmt.Errorf("remove lab %s: %w", name, err)
	}
	return done, nil
}

// removePods takes the pods away as a container runtime would. It is a
// courtesy: what does not work here goes by force.
func (l *Lab) removePods(ctx context.Context) {
	var g errgroup.Group
	const parallel = 8
	g.SetLimit(parallel)
	for _, p := range l.Pods() {
		g.Go(func() error { return l.cniDel(ctx, p) })
	}
	_ = g.Wait()
}

// removeProcesses ends everything that runs in the lab.
func (n names) removeProcesses(ctx context.Context, done *Removed) error {
	pids := lab(n).processes()
	done.Processes = len(pids)
	ctx, cancel := context.WithTimeoutCause(ctx, killWait, fmt.Errorf("not within %s", killWait))
	defer cancel()
	var errs []error
	if root, err := cgroupRoot(); err == nil {
		errs = append(errs, killCgroup(ctx, filepath.Join(root, n.cgroupName())))
	}
	errs = append(errs, poll(ctx, "processes of the lab to end", func() (bool, error) {
		rest := lab(n).processes()
		for _, pid := range rest {
			if err := ignore(unix.Kill(pid, unix.SIGKILL), unix.ESRCH); err != nil {
				return false, fmt.Errorf("kill %d: %w", pid, err)
			}
		}
		return len(rest) == 0, nil
	}))
	return errors.Join(errs...)
}

func (n names) removeNamespaces(done *Removed) error {
	paths, err := netns.List(netnsDir, n.nsPrefix())
	errs := []error{err}
	for _, p := range paths {
		errs = append(errs, netns.Delete(p))
	}
	done.Namespaces = len(paths)
	netns.RetireDir(netnsDir)
	return errors.Join(errs...)
}

func (n names) removeCgroups(done *Removed) error {
	root, err := cgroupRoot()
	if err != nil {
		return err
	}
	done.Cgroups, err = removeCgroup(filepath.Join(root, n.cgroupName()))
	return err
}

func (n names) removeFiles(done *Removed) error {
	mounts, err := mountsBelow(n.dir())
	done.Mounts = len(mounts)
	errs := []error{
		err,
		unmountBelow(n.dir()),
		os.RemoveAll(n.dir()),
		ignore(os.Remove(n.lock()), os.ErrNotExist),
	}
	_ = os.Remove(RunDir) // stays while other labs are in it
	return errors.Join(errs...)
}

// Names lists the labs on the machine, also those that are only half there.
func Names() []string {
	found := map[string]bool{}
	collect := func(dir, prefix, end string) {
		entries, _ := os.ReadDir(dir) // not there: nothing found
		for _, e := range entries {
			name, ok := strings.CutPrefix(e.Name(), prefix)
			if end != "" {
				name, _, _ = strings.Cut(name, end)
			}
			if ok && CheckName(name) == nil {
				found[name] = true
			}
		}
	}
	collect(RunDir, "", "")
	collect(RunDir, ".", ".lock") // of a lab that got no further
	collect(netnsDir, "hwl-", "-")
	if root, err := cgroupRoot(); err == nil {
		collect(root, "hawser-lab-", "")
	}
	return sortedKeys(found)
}
