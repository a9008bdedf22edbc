// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/hawser-mesh/hawser/lab/netns"
)

// machine is what a cut of power strikes: a node with its pods, or the host of a
// cluster's API server.
type machine struct {
	name    string // of its port of the fabric
	netns   string
	cgroup  string
	addr    netip.Addr
	cluster Cluster
	node    *Node // nil: an API server's
}

// PowerOff takes a node, or a cluster with its API server, off the network at
// once and destroys what lived in memory: its processes, its pods, its network
// namespaces and what was in its kernel. What is on disk stays. It holds the lab's
// lock until it returns.
func (l *Lab) PowerOff(ctx context.Context, who string) error {
	return l.powered(ctx, who, func(ms []machine) error {
		var errs []error
		for _, m := range ms { // all go silent at once; nobody says good-bye
			err := netns.SetPort(l.fabric(), m.name, false)
			if _, gone := os.Stat(m.netns); gone == nil {
				errs = append(errs, err)
			}
		}
		for _, m := range ms {
			errs = append(errs, l.off(ctx, m))
		}
		return errors.Join(errs...)
	})
}

func (l *Lab) off(ctx context.Context, m machine) error {
	errs := []error{killCgroup(withTimeout(ctx, killWait), m.cgroup), netns.Disconnect(l.fabric(), m.name)}
	if m.node != nil {
		for _, p := range l.podsOn(m.node.Name) {
			errs = append(errs, netns.Delete(p.Place.Netns))
		}
		errs = append(errs, os.RemoveAll(m.node.PinPath))
	}
	// Whoever is started into a cgroup after a cgroup.kill is killed, too (seen in
	// Linux 6.18): another takes its place.
	_, err := removeCgroup(m.cgroup)
	errs = append(errs, err)
	if err := errors.Join(append(errs, netns.Delete(m.netns))...); err != nil {
		return fmt.Errorf("power off %s: %w", m.name, err)
	}
	return nil
}

// PowerOn ends a PowerOff and waits until all programs answer and the pods are
// made anew. It holds the lab's lock until it returns.
func (l *Lab) PowerOn(ctx context.Context, who string) error {
	b := &builder{Lab: l}
	var apiServers, nodes []machine
	err := l.powered(ctx, who, func(ms []machine) error {
		for _, m := range ms {
			if _, err := os.Stat(m.netns); err == nil {
				return fmt.Errorf("power on %s: it has power", m.name)
			}
			if err := b.attach(m.cluster, m.name, m.netns, m.addr); err != nil {
				return err
			}
			if m.node == nil {
				apiServers = append(apiServers, m)
				if err := makeCgroup(m.cgroup); err != nil {
					return err
				}
				continue
			}
			nodes = append(nodes, m)
			if err := errors.Join(makeCgroup(b.agentCgroup(*m.node)), os.MkdirAll(m.node.PinPath, 0o755)); err != nil {
				return fmt.Errorf("power on %s: %w", m.name, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, m := range apiServers {
		if err := l.Restart(ctx, APIServerProgram, m.cluster.Name); err != nil {
			return err
		}
	}
	for _, m := range nodes {
		if err := l.Restart(ctx, AgentProgram, m.name); err != nil {
			return err
		}
	}
	return l.powered(ctx, who, func([]machine) error { return b.rebootPods(ctx, nodes) })
}

// rebootPods makes the pods of nodes that were off anew, as other containers.
func (b *builder) rebootPods(ctx context.Context, nodes []machine) error {
	var again []func(*Lab) Pod
	for _, m := range nodes {
		for _, p := range b.podsOn(m.name) {
			if err := errors.Join(p.remove(), b.forget(p)); err != nil {
				return fmt.Errorf("pod %s/%s: %w", p.Cluster, p.Name, err)
			}
			again = append(again, func(l *Lab) Pod {
				fresh := l.newPod(m.cluster, p.PodSpec)
				sum := sha256.Sum256([]byte(p.ContainerID + time.Now().String()))
				fresh.ContainerID = hex.EncodeToString(sum[:16])
				return fresh
			})
		}
	}
	return b.addPods(ctx, again)
}

func (l *Lab) podsOn(node string) []Pod {
	return slices.DeleteFunc(l.Pods(), func(p Pod) bool { return p.Node != node })
}

// powered calls fn with what a name means: a node, or a cluster's nodes and the
// host of its API server.
func (l *Lab) powered(ctx context.Context, who string, fn func([]machine) error) error {
	unlock, err := lockLab(withTimeout(ctx, lockWait), l.names)
	if err != nil {
		return err
	}
	defer unlock()
	if err := l.load(); err != nil {
		return err
	}
	b := &builder{Lab: l}
	host := func(c Cluster, n Node) machine {
		return machine{n.Name, n.Netns, b.nodeCgroup(n), n.Address, c, &n}
	}
	if c, n, ok := findNode(l.Clusters(), who); ok {
		return fn([]machine{host(c, n)})
	}
	c, err := findCluster(l.Clusters(), who)
	if err != nil {
		return fmt.Errorf("%w; nor is it a node", err)
	}
	ms := []machine{{c.Name + "-ctl", c.Netns, b.controlCgroup(c), c.Control, c, nil}}
	for _, n := range c.Members {
		ms = append(ms, host(c, n))
	}
	return fn(ms)
}
