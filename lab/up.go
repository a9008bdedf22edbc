// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hawser-mesh/hawser/lab/netns"
)

// Options are how Up works, not what it makes.
type Options struct {
	Binaries Binaries
	// NetworkOnly makes namespaces, links, mounts and cgroups, and starts
	// nothing in them.
	NetworkOnly bool
	Demo        bool
	// Progress is told of each step twice, possibly of several at a time; nil
	// is nobody.
	Progress func(Progress)
	// Trap is called before each change to the machine, with its number from 1.
	// Tests end the process there. nil is nothing.
	Trap func(n int, what string)
}

// Progress is news of a step.
type Progress struct {
	Step    string
	Over    bool // else it begins
	Err     error
	Detail  string
	Elapsed time.Duration // when Over
}

// ErrExists says that a lab of that name is there already.
var ErrExists = errors.New("the lab exists already")

// builder is one run of Up.
type builder struct {
	*Lab
	opts Options

	mu    sync.Mutex
	traps int
}

// Up makes a lab. It holds the lab's lock until it returns. On an error what
// was made stays, for looking at; Down removes it.
func Up(ctx context.Context, spec Spec, opts Options) (*Lab, error) {
	spec, err := spec.Complete()
	if err != nil {
		return nil, err
	}
	if !opts.NetworkOnly {
		if err := opts.Binaries.check(); err != nil {
			return nil, err
		}
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("a lab needs root: it makes network namespaces, mounts and cgroups")
	}
	n := names{spec.Name}
	if left := leftovers(n); len(left) > 0 {
		return nil, fmt.Errorf("lab %s: %w (%s, …); remove it with: hawser lab down --name %s", spec.Name, ErrExists, left[0], spec.Name)
	}
	root, err := cgroupRoot()
	if err != nil {
		return nil, err
	}
	unlock, err := lockLab(withTimeout(ctx, time.Second), n)
	if err != nil {
		return nil, err
	}
	defer unlock()
	l := &Lab{names: n, state: State{
		Spec: spec, Binaries: opts.Binaries, Clusters: plan(spec), Started: time.Now(),
		CgroupRoot: filepath.Join(root, n.cgroupName()),
	}}
	b := &builder{Lab: l, opts: opts}
	if err := b.build(ctx); err != nil {
		return l, err
	}
	return l, l.update(func(s *State) { s.Ready = time.Now() })
}

func (b *builder) build(ctx context.Context) error {
	spec := b.state.Spec
	detail := fmt.Sprintf("%s × %s", count(len(spec.Clusters), "cluster"), count(spec.Clusters[0].Nodes, "node"))
	if spec.IPv6 {
		detail += ", IPv4 and IPv6"
	}
	if err := b.step("fabric", func() (string, error) { return detail, b.ground() }); err != nil {
		return err
	}
	if b.opts.NetworkOnly {
		return nil
	}
	if spec.SharedEtcd {
		if err := b.step(sharedEtcdName, func() (string, error) { return b.startSharedEtcd(ctx) }); err != nil {
			return err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, c := range b.state.Clusters {
		g.Go(func() error {
			return b.step(c.Name, func() (string, error) { return b.startCluster(gctx, c) })
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if len(b.state.Clusters) > 1 {
		if err := b.step("mesh", func() (string, error) { return b.peer(ctx) }); err != nil {
			return err
		}
	}
	if pods := specPods(b.state.Clusters); len(pods) > 0 {
		err := b.step("pods", func() (string, error) {
			return count(len(pods), "pod"), b.addPods(ctx, pods)
		})
		if err != nil {
			return err
		}
	}
	if b.opts.Demo {
		return b.demo(ctx)
	}
	return nil
}

// count is a number with its noun.
func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return fmt.Sprintf("%d %s", n, noun)
}

// step runs fn and tells of it.
func (b *builder) step(name string, fn func() (detail string, err error)) error {
	start := time.Now()
	b.tell(Progress{Step: name})
	detail, err := fn()
	b.tell(Progress{Step: name, Over: true, Err: err, Detail: detail, Elapsed: time.Since(start)})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (b *builder) tell(p Progress) {
	if b.opts.Progress == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.opts.Progress(p)
}

func (b *builder) trap(what string) {
	if b.opts.Trap == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.traps++
	b.opts.Trap(b.traps, what)
}

// ground makes everything that is no process: directories, mounts, cgroups,
// namespaces, links.
func (b *builder) ground() error {
	b.trap("mount tmpfs")
	if err := mountAt(b.dir(), "tmpfs", "mode=0755,size=2g"); err != nil {
		return err
	}
	b.trap("write record")
	if err := b.update(func(*State) {}); err != nil {
		return err
	}
	b.trap("mount bpffs")
	if err := mountAt(b.dir("bpf"), "bpf", "mode=0700"); err != nil {
		return err
	}
	if err := b.makeDirs(); err != nil {
		return err
	}
	return b.network()
}

func (b *builder) makeDirs() error {
	if b.state.Spec.SharedEtcd {
		b.trap("cgroup " + sharedEtcdName)
		if err := makeCgroup(b.sharedEtcdCgroup()); err != nil {
			return err
		}
	}
	for _, c := range b.state.Clusters {
		b.trap("cgroup " + c.Name)
		if err := makeCgroup(b.controlCgroup(c)); err != nil {
			return err
		}
		for _, n := range c.Members {
			b.trap("cgroup " + n.Name)
			if err := makeCgroup(b.agentCgroup(n)); err != nil {
				return err
			}
			for _, d := range []string{b.dir(n.Name), n.PinPath} {
				if err := os.MkdirAll(d, 0o755); err != nil {
					return fmt.Errorf("make directory: %w", err)
				}
			}
		}
	}
	return nil
}

func (b *builder) controlCgroup(c Cluster) string {
	return filepath.Join(b.state.CgroupRoot, c.Name+"-ctl")
}

// nodeCgroup holds all of a node: its agent and its pods.
func (b *builder) nodeCgroup(n Node) string { return filepath.Join(b.state.CgroupRoot, n.Name) }

func (b *builder) agentCgroup(n Node) string { return filepath.Join(b.nodeCgroup(n), "_agent") }

func (l *Lab) fabric() string { return l.netns("fabric") }

func (b *builder) network() error {
	var bridges []netns.Bridge
	var controls []netip.Addr
	for _, c := range b.state.Clusters {
		bridges = append(bridges, netns.Bridge{Name: "br-" + c.Name, Address: netip.PrefixFrom(c.Gateway, c.NodeCIDR.Bits())})
		controls = append(controls, c.Control)
	}
	b.trap("namespace fabric")
	if err := netns.CreateFabric(b.fabric(), bridges, controls, etcdPort); err != nil {
		return err
	}
	if b.state.Spec.SharedEtcd {
		first := b.state.Clusters[0]
		if err := b.attach(first, sharedEtcdName, b.netns(sharedEtcdName), first.Etcd); err != nil {
			return err
		}
	}
	for _, c := range b.state.Clusters {
		if err := b.attach(c, c.Name+"-ctl", c.Netns, c.Control); err != nil {
			return err
		}
		for _, n := range c.Members {
			if err := b.attach(c, n.Name, n.Netns, n.Address); err != nil {
				return err
			}
			if n.PodCIDR6.IsValid() {
				if err := netns.LoopbackIPv6(n.Netns); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (b *builder) attach(c Cluster, name, path string, addr netip.Addr) error {
	b.trap("namespace " + name)
	if err := netns.Create(path); err != nil {
		return err
	}
	b.trap("link " + name)
	return netns.Connect(b.fabric(), netns.Port{
		Bridge: "br-" + c.Name, Name: name, Netns: path,
		Address: netip.PrefixFrom(addr, c.NodeCIDR.Bits()), Gateway: c.Gateway, MTU: underlayMTU,
	})
}

// withTimeout ends with the process at the latest: for waits that return when
// their context does.
func withTimeout(ctx context.Context, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeoutCause(ctx, d, fmt.Errorf("not within %s", d))
	context.AfterFunc(ctx, cancel)
	return ctx
}
