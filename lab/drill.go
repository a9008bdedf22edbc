// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hawser-mesh/hawser/lab/netns"
	"github.com/hawser-mesh/hawser/tunnel"
)

// Program is a kind of program that drills act on.
type Program string

// Programs.
const (
	AgentProgram     Program = "agent"
	APIServerProgram Program = "apiserver"
)

// stopTimeout bounds what a program takes to end after SIGTERM before it is
// killed.
const stopTimeout = 15 * time.Second

// process finds the process of a program: an agent by its node, an API server
// by its cluster.
func (l *Lab) process(kind Program, who string) (Process, error) {
	s := l.snapshot()
	name := who + "-" + string(kind)
	var have []string
	for _, p := range s.Processes {
		if p.Name == name {
			return p, nil
		}
		if owner, ok := strings.CutSuffix(p.Name, "-"+string(kind)); ok {
			have = append(have, owner)
		}
	}
	return Process{}, fmt.Errorf("no %s of %q, there are: %s", kind, who, strings.Join(have, ", "))
}

// Kill ends a program with SIGKILL and waits until it is gone.
func (l *Lab) Kill(ctx context.Context, kind Program, who string) error {
	p, err := l.process(kind, who)
	if err != nil {
		return err
	}
	return p.end(ctx, syscall.SIGKILL)
}

// Stop ends a program with SIGTERM and waits until it is gone.
func (l *Lab) Stop(ctx context.Context, kind Program, who string) error {
	p, err := l.process(kind, who)
	if err != nil {
		return err
	}
	return p.end(withTimeout(ctx, stopTimeout), syscall.SIGTERM)
}

func (p Process) end(ctx context.Context, sig syscall.Signal) error {
	if err := p.signal(sig); err != nil {
		return err
	}
	return poll(ctx, p.Name+" to end", func() (bool, error) { return !p.alive(), nil })
}

// Restart starts a program as it was started before, ending it with SIGTERM first if
// it runs, and waits until it answers; whether it reaches others is not its matter.
// It holds the lab's lock only while it starts the program.
func (l *Lab) Restart(ctx context.Context, kind Program, who string) error {
	return l.RestartWith(ctx, kind, who, nil)
}

// RestartWith is Restart with other settings, flag and value, which the program
// keeps.
func (l *Lab) RestartWith(ctx context.Context, kind Program, who string, settings map[string]string) error {
	ready, err := l.answers(kind, who)
	if err != nil {
		return err
	}
	if err := l.Stop(ctx, kind, who); err != nil {
		return err
	}
	p, err := l.startAgain(ctx, kind, who, settings)
	if err != nil {
		return err
	}
	return waitReady(ctx, p, ready)
}

func (l *Lab) startAgain(ctx context.Context, kind Program, who string, settings map[string]string) (Process, error) {
	unlock, err := lockLab(withTimeout(ctx, lockWait), l.names)
	if err != nil {
		return Process{}, err
	}
	defer unlock()
	if err := l.load(); err != nil {
		return Process{}, err
	}
	// Another command may have started it meanwhile.
	if err := l.Stop(ctx, kind, who); err != nil {
		return Process{}, err
	}
	p, err := l.process(kind, who)
	if err != nil {
		return Process{}, err
	}
	for name := range settings {
		if !settingName.MatchString(name) {
			return Process{}, fmt.Errorf("%q is not the name of a flag", name)
		}
		p.Argv = slices.DeleteFunc(slices.Clone(p.Argv), func(arg string) bool { return strings.HasPrefix(arg, "--"+name+"=") })
	}
	p.Argv = append(p.Argv, flags(settings)...)
	return l.start(p)
}

// answers asks a program once.
func (l *Lab) answers(kind Program, who string) (func(context.Context) error, error) {
	if _, err := l.process(kind, who); err != nil {
		return nil, err
	}
	clusters := l.Clusters()
	if kind == AgentProgram {
		_, n, _ := findNode(clusters, who) // it has a process, so it is there
		return agentAnswers(n.Socket), nil
	}
	c, err := findCluster(clusters, who)
	return apiServerReady(c.Socket), err
}

// Network is which part of the network between two clusters a drill cuts.
type Network string

// Networks.
const (
	ControlNetwork Network = "control" // between their API servers only
	TunnelNetwork  Network = "tunnel"  // the tunnel between their nodes only
	FabricNetwork  Network = "fabric"  // everything
)

// Cut makes the network between two clusters lose every packet, silently.
func (l *Lab) Cut(what Network, a, b string) error { return l.between(what, a, b, netns.Cut) }

// Heal ends a Cut.
func (l *Lab) Heal(what Network, a, b string) error { return l.between(what, a, b, netns.Heal) }

func (l *Lab) between(what Network, a, b string, fn func(string, netip.Prefix, netip.Prefix, uint16) error) error {
	if a == b {
		return fmt.Errorf("between %s and itself is nothing to cut", a)
	}
	var ends [2]netip.Prefix
	var port uint16
	for i, name := range []string{a, b} {
		c, err := findCluster(l.Clusters(), name)
		if err != nil {
			return err
		}
		switch what {
		case ControlNetwork:
			ends[i] = netip.PrefixFrom(c.Control, c.Control.BitLen())
		case FabricNetwork:
			ends[i] = c.NodeCIDR
		case TunnelNetwork:
			ends[i], port = c.NodeCIDR, tunnel.DefaultVXLANPort
		default:
			return fmt.Errorf("no network %q: control, tunnel or fabric", what)
		}
	}
	slices.SortFunc(ends[:], func(x, y netip.Prefix) int { return x.Addr().Compare(y.Addr()) })
	return fn(l.fabric(), ends[0], ends[1], port)
}

// SetMTU makes the network carry packets of so many bytes at most to and from a
// node, whatever the node believes; larger ones are lost, silently. 0 ends it.
func (l *Lab) SetMTU(who string, mtu int) error {
	c, _, ok := findNode(l.Clusters(), who)
	if !ok {
		return fmt.Errorf("no node %q in the lab", who)
	}
	const least = 576
	if mtu == 0 {
		mtu = underlayMTU
	}
	if mtu < least || mtu > underlayMTU {
		return fmt.Errorf("an MTU of %d: give one of %d to %d", mtu, least, underlayMTU)
	}
	return netns.SetMTU(l.fabric(), "br-"+c.Name, who, mtu, underlayMTU)
}
