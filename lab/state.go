// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Binaries are the programs of a lab, as paths.
type Binaries struct {
	Hawser    string `json:"hawser"`
	Agent     string `json:"agent"`
	APIServer string `json:"apiserver"`
	CNI       string `json:"cni"`
}

// BinariesIn are the programs below a directory, under their usual names.
func BinariesIn(dir string) Binaries {
	return Binaries{
		Hawser: filepath.Join(dir, "hawser"), Agent: filepath.Join(dir, "hawser-agent"),
		APIServer: filepath.Join(dir, "hawser-apiserver"), CNI: filepath.Join(dir, "hawser-cni"),
	}
}

func (b Binaries) check() error {
	var errs []error
	for _, path := range []string{b.Hawser, b.Agent, b.APIServer, b.CNI} {
		if info, err := os.Stat(path); err != nil {
			errs = append(errs, err)
		} else if info.IsDir() || info.Mode()&0o111 == 0 {
			errs = append(errs, fmt.Errorf("%s cannot be executed", path))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("programs of the lab are missing (make build makes them):\n%w", err)
	}
	return nil
}

// Pod is a pod of the lab.
type Pod struct {
	PodSpec
	Cluster     string   `json:"cluster"`
	ContainerID string   `json:"containerID"`
	Place       place    `json:"place"`
	Addresses   []string `json:"addresses,omitempty"`
}

// State is the record of a lab.
type State struct {
	Spec       Spec      `json:"spec"`
	Binaries   Binaries  `json:"binaries"`
	CgroupRoot string    `json:"cgroupRoot"` // the lab's own directory
	Clusters   []Cluster `json:"clusters"`
	Processes  []Process `json:"processes"`
	Pods       []Pod     `json:"pods"`
	Started    time.Time `json:"started"`
	Ready      time.Time `json:"ready,omitzero"`
}

// Lab is a lab that exists, wholly or in part.
type Lab struct {
	names

	mu    sync.Mutex
	state State
}

// ErrNoLab says that there is no lab of that name.
var ErrNoLab = errors.New("no such lab")

// Open reads the record of a lab. The error is ErrNoLab when there is none.
func Open(name string) (*Lab, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	l := &Lab{names: names{name}}
	if err := l.load(); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%w: %s (start it with `hawser lab up`)", ErrNoLab, name)
		}
		return nil, err
	}
	return l, nil
}

// Name is the lab's name.
func (l *Lab) Name() string { return l.lab }

// Clusters are the lab's clusters as planned.
func (l *Lab) Clusters() []Cluster { return l.snapshot().Clusters }

// Pods are the lab's pods.
func (l *Lab) Pods() []Pod { return l.snapshot().Pods }

func (l *Lab) snapshot() State {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.state
	s.Processes, s.Pods = slices.Clone(s.Processes), slices.Clone(s.Pods)
	return s
}

func (l *Lab) load() error {
	data, err := os.ReadFile(l.stateFile())
	if err != nil {
		return fmt.Errorf("read lab record: %w", err)
	}
	var s State
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("read lab record %s: %w", l.stateFile(), err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = s
	return nil
}

// update changes the record and stores it before it returns. Other processes
// that change the same lab hold its lock (see lockLab), as this one does.
func (l *Lab) update(change func(*State)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(&l.state)
	data, err := json.MarshalIndent(&l.state, "", " ")
	if err != nil {
		return fmt.Errorf("write lab record: %w", err)
	}
	tmp := l.stateFile() + ".new"
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return fmt.Errorf("write lab record: %w", err)
	}
	if err := os.Rename(tmp, l.stateFile()); err != nil {
		return fmt.Errorf("write lab record: %w", err)
	}
	return nil
}

// setProcess records a process, replacing one of the same name.
func (l *Lab) setProcess(p Process) error {
	return l.update(func(s *State) {
		i := slices.IndexFunc(s.Processes, func(o Process) bool { return o.Name == p.Name })
		if i < 0 {
			s.Processes = append(s.Processes, p)
			return
		}
		s.Processes[i] = p
	})
}

// lockLab takes the lab's lock, waiting until ctx ends. The kernel gives it up
// when this process dies, however it dies.
func lockLab(ctx context.Context, n names) (unlock func(), err error) {
	if err := os.MkdirAll(RunDir, 0o755); err != nil {
		return nil, fmt.Errorf("lock lab %s: %w", n.lab, err)
	}
	var f *os.File
	err = poll(ctx, "another `hawser lab` command on "+n.lab+" to end", func() (bool, error) {
		var err error
		if f, err = os.OpenFile(n.lock(), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
			return false, ignore(err, os.ErrNotExist)
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			return false, ignore(err, unix.EWOULDBLOCK)
		}
		// Down removes the file: make sure that this is the one in place.
		mine, err1 := f.Stat()
		there, err2 := os.Stat(n.lock())
		if err1 == nil && err2 == nil && os.SameFile(mine, there) {
			return true, nil
		}
		f.Close()
		return false, os.MkdirAll(RunDir, 0o755)
	})
	if err != nil {
		return nil, fmt.Errorf("lock lab %s: %w", n.lab, err)
	}
	return func() { f.Close() }, nil
}

// poll calls ready until it is true or fails, or ctx ends; waitingFor is told
// in the error then.
func poll(ctx context.Context, waitingFor string, ready func() (bool, error)) error {
	const interval = 10 * time.Millisecond
	for {
		ok, err := ready()
		if err != nil || ok {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", waitingFor, context.Cause(ctx))
		case <-time.After(interval):
		}
	}
}
