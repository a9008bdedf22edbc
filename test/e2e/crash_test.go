// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"google.golang.org/grpc"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/netdev"
	"github.com/hawser-mesh/hawser/internal/nsthread"
	"github.com/hawser-mesh/hawser/internal/testutil/crashpoint"
	"github.com/hawser-mesh/hawser/lab"
)

// recovery is how long an agent may take to put right what a crash left.
const recovery = 20 * time.Second

// crashed is a pod that an agent makes or removes when it is killed.
type crashed struct {
	*script
	lab    *lab.Lab // as it is now: commands have restarted agents
	node   *node
	server place
	netns  string
	id     string
	bare   []string // what the node has without the pod
}

// cmdCrash is `crash add|delete NODE POD`: the node's agent is killed while it
// makes a pod, or removes one, each time at the next of its changes to files, to the
// network or to maps, and started again. The pod must then be there whole, which means that it reaches POD, or not at
// all, and what was asked must work when it is asked again. `crash half NODE POD`
// kills it when a pod is half made, and leaves it at that.
func cmdCrash(s *script, args []string) (string, error) {
	if len(args) != 3 || s.world.nodes[args[1]] == nil || args[0] != "add" && args[0] != "delete" && args[0] != "half" {
		return "", usage("crash add|delete|half NODE POD")
	}
	server, err := s.place(args[2])
	if err != nil {
		return "", err
	}
	l, err := lab.Open(s.world.lab.Name())
	if err != nil {
		return "", err
	}
	c := &crashed{script: s, lab: l, node: s.world.nodes[args[1]], server: server, id: "crash"}
	c.netns = filepath.Join(s.ts.MkAbs("."), args[0])
	if err := nsthread.CreateNetns(c.netns); err != nil {
		return "", err
	}
	s.ts.Defer(func() { _ = nsthread.DeleteNetns(c.netns) })
	if err := settled(c.node.Netns, filepath.Join(c.node.PinPath, "links")); err != nil {
		return "", err
	}
	if c.bare, err = c.remains(); err != nil {
		return "", err
	}
	if args[0] == "half" {
		return c.crashHalf()
	}
	try := c.crashAdd
	if args[0] == "delete" {
		try = c.crashDelete
	}
	const fewest, most = 8, 200
	var points []string
	for n := 1; n <= most; n++ {
		changes, killed, err := try(n)
		if err != nil {
			return "", fmt.Errorf("killed at change %d of\n  %s\n%w", n, strings.Join(changes, "\n  "), err)
		}
		if !killed {
			s.count("crash points", uint64(n-1))
			if n-1 < fewest {
				return "", fmt.Errorf("only %d changes were seen: a pod takes more", n-1)
			}
			return fmt.Sprintf("%d crash points:\n  %s\n", n-1, strings.Join(points, "\n  ")), nil
		}
		points = append(points, changes[len(changes)-1])
	}
	return "", fmt.Errorf("more than %d changes", most)
}

// cmdVanish is `vanish CLUSTER/POD`: the pod's processes and its network namespace
// end, and no runtime tells the agent.
func cmdVanish(s *script, args []string) (string, error) {
	if len(args) != 1 {
		return "", usage("vanish CLUSTER/POD")
	}
	l, err := lab.Open(s.world.lab.Name())
	if err != nil {
		return "", err
	}
	for _, p := range l.Pods() {
		if p.Cluster+"/"+p.Name != args[0] {
			continue
		}
		if err := os.WriteFile(filepath.Join(p.Place.Cgroup, "cgroup.kill"), []byte("1"), 0o200); err != nil {
			return "", err
		}
		return "", nsthread.DeleteNetns(p.Place.Netns)
	}
	return "", fmt.Errorf("no pod %s", args[0])
}

// crashAdd adds a pod up to the n-th change, then again, and removes it.
func (c *crashed) crashAdd(n int) (changes []string, killed bool, err error) {
	changes, killed, err = c.watch(n, func(ctx context.Context) error {
		if _, err := c.add(ctx); err != nil {
			return err
		}
		return settledWhile(ctx, c.node.Netns, filepath.Join(c.node.PinPath, "links"))
	})
	if err != nil {
		return changes, killed, err
	}
	if killed {
		if err := within(recovery, c.wholeOrGone); err != nil {
			return changes, true, fmt.Errorf("after the restart: %w", err)
		}
	}
	if _, err := c.add(context.Background()); err != nil {
		return changes, killed, fmt.Errorf("add it again: %w", err)
	}
	if err := c.reach(); err != nil {
		return changes, killed, fmt.Errorf("added again: %w", err)
	}
	return changes, killed, c.removeTwice()
}

// crashHalf kills the agent when a pod has its device and its program, and no more:
// at the change of an ADD that another one made its filter by.
func (c *crashed) crashHalf() (string, error) {
	all, _, err := c.watch(0, func(ctx context.Context) error {
		_, err := c.add(ctx)
		return err
	})
	if err != nil {
		return "", err
	}
	if err := c.removeTwice(); err != nil {
		return "", err
	}
	half := 1 + slices.Index(all, "netlink: filter")
	if half == 0 {
		return "", fmt.Errorf("no filter is made by\n  %s", strings.Join(all, "\n  "))
	}
	w, err := crashpoint.Watch(c.agent(), half)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	go func() {
		<-w.Done()
		cancel()
	}()
	_, failed := c.add(ctx)
	changes, killed, err := w.Stop()
	if err != nil || !killed {
		return "", fmt.Errorf("the agent was not killed: %w", errors.Join(err, failed))
	}
	now, err := c.remains()
	if err == nil && slices.Equal(now, c.bare) {
		err = errors.New("nothing of the pod is there")
	}
	return fmt.Sprintf("killed at %s\n", changes[len(changes)-1]), err
}

// crashDelete adds a pod and removes it up to the n-th change, then again.
func (c *crashed) crashDelete(n int) (changes []string, killed bool, err error) {
	if _, err := c.add(context.Background()); err != nil {
		return nil, false, err
	}
	if err := settled(c.node.Netns, filepath.Join(c.node.PinPath, "links")); err != nil {
		return nil, false, err
	}
	changes, killed, err = c.watch(n, c.remove)
	if err != nil {
		return changes, killed, err
	}
	if killed {
		if err := within(recovery, c.wholeOrGone); err != nil {
			return changes, true, fmt.Errorf("after the restart: %w", err)
		}
	}
	return changes, killed, c.removeTwice()
}

// watch does something while the agent is killed at its n-th change, and starts the
// agent again.
func (c *crashed) watch(n int, do func(context.Context) error) (changes []string, killed bool, err error) {
	w, err := crashpoint.Watch(c.agent(), n)
	if err != nil {
		return nil, false, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	doing, done := context.WithCancel(ctx)
	defer done()
	go func() {
		<-w.Done()
		done()
	}()
	failed := do(doing)
	changes, killed, err = w.Stop()
	if err != nil || !killed {
		return changes, false, errors.Join(err, failed)
	}
	return changes, true, c.lab.Restart(ctx, lab.AgentProgram, c.node.Name)
}

// agent is the process.
func (c *crashed) agent() int {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	for _, r := range c.lab.Status(ctx).Rows {
		if r.Name == c.node.Name {
			return r.PID
		}
	}
	return 0
}

func (c *crashed) add(ctx context.Context) (*hawserv1.Endpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	r, err := c.node.AddEndpoint(ctx, &hawserv1.AddEndpointRequest{
		ContainerId: c.id, Netns: c.netns, Ifname: "eth0", Namespace: "demo", Name: c.id, Labels: []string{"k8s:app=crash"},
	}, grpc.WaitForReady(true))
	return r.GetEndpoint(), err
}

func (c *crashed) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := c.node.DeleteEndpoint(ctx, &hawserv1.DeleteEndpointRequest{ContainerId: c.id, Ifname: "eth0"}, grpc.WaitForReady(true))
	return err
}

// removeTwice removes the pod, also when it is gone, until nothing of it is left.
func (c *crashed) removeTwice() error {
	for range 2 {
		if err := c.remove(context.Background()); err != nil {
			return fmt.Errorf("remove it: %w", err)
		}
	}
	if err := within(recovery, c.gone); err != nil {
		return fmt.Errorf("removed: %w", err)
	}
	return nil
}

func (c *crashed) reach() error {
	p := probe{
		from: place{netns: c.netns}, to: c.server, protocol: "tcp", port: loadPort, wait: patience,
		source: uint16(firstPort + c.nextPort.Add(1)%ports),
	}
	return p.ask()
}

// wholeOrGone tells that the pod is there as a pod should be, or not at all.
func (c *crashed) wholeOrGone() error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	list, err := c.node.ListEndpoints(ctx, &hawserv1.ListEndpointsRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	for _, e := range list.GetEndpoints() {
		switch {
		case e.GetContainerId() != c.id:
		case e.GetState() == "ready":
			return c.reach()
		default:
			return fmt.Errorf("the pod is %s", e.GetState())
		}
	}
	return c.gone()
}

// gone tells that the node is as it was without the pod.
func (c *crashed) gone() error {
	now, err := c.remains()
	if err != nil || slices.Equal(now, c.bare) {
		return err
	}
	return fmt.Errorf("without the pod:\n  %s\nnow:\n  %s", strings.Join(c.bare, "\n  "), strings.Join(now, "\n  "))
}

// remains are the places in which a pod could leave something.
func (c *crashed) remains() (out []string, err error) {
	list := func(what, pattern string) {
		found, _ := filepath.Glob(pattern) // patterns are well formed
		for _, f := range found {
			out = append(out, what+" "+filepath.Base(f))
		}
	}
	list("record", filepath.Join(lab.RunDir, c.world.lab.Name(), c.node.Name, "state", "endpoints", "*"))
	list("link", filepath.Join(c.node.PinPath, "links", "*"))
	err = nsthread.InNetns(c.node.Netns, func() error {
		devices, err := netdev.PodDevices()
		for _, d := range devices {
			out = append(out, "device "+d)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	rows, err := c.mapRows()
	if err != nil {
		return nil, err
	}
	out = append(out, rows...)
	for _, prefix := range []string{"hawser/v1/state/" + c.node.Cluster + "/ips/", "hawser/v1/local/" + c.node.Cluster + "/refs/"} {
		keys, err := c.etcd(c.node.Cluster, "list", prefix)
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(keys) {
			key, _, _ := strings.Cut(line, " ")
			out = append(out, "key "+key)
		}
	}
	slices.Sort(out)
	return out, nil
}

// mapRows are the endpoints that the kernel knows.
func (c *crashed) mapRows() (out []string, err error) {
	m, err := ebpf.LoadPinnedMap(filepath.Join(c.node.PinPath, "maps", "endpoints"), nil)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	rows, err := maps.Dump[maps.IPKey, maps.Endpoint](m)
	for k := range rows {
		out = append(out, fmt.Sprintf("endpoint %v", netip.AddrFrom16([16]byte(k.Addr)).Unmap()))
	}
	return out, err
}
