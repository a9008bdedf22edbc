// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/liveness"
	"github.com/hawser-mesh/hawser/identity/ipcache"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/version"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
	"github.com/hawser-mesh/hawser/loadbalancer"
)

// statusEvery is how often the node's status record is brought up to date.
const statusEvery = 10 * time.Second

// publisher writes this node's own keys: its Node and VTEP records, the
// addresses of its endpoints, its slices and its status.
type publisher struct {
	cfg    *Config
	log    *slog.Logger
	writer *store.Writer
	view   *view
	ips    *ipcache.Cache
	mtu    int

	mu        sync.Mutex
	endpoints map[netip.Addr]loadbalancer.LocalEndpoint
	slices    map[serviceName][]kvstore.Key // stored for each service
	changed   chan struct{}
	// configured is set once the cluster's decisions on this node are read:
	// before, it is not known how to publish its backends.
	configured, drained bool
	enforced            func() map[string]int64  // NodeStatus.enforced
	inPart              func() map[string]string // NodeStatus.policy_problems
	trust               func() (bundle, signer []byte)
	paths               func() []*keyspacev1.PathReport
	// later is an IPv6 range that the node was given after its start.
	later   netip.Prefix
	refutes func() int64  // NodeStatus.refutes
	tell    chan struct{} // the status is to be told now
}

// ownPrefixes are the directories in which the agent's keys are.
func ownPrefixes(cluster string) []string {
	return []string{
		kvstore.KindPrefix(kvstore.State, cluster, kvstore.KindNode),
		kvstore.KindPrefix(kvstore.State, cluster, kvstore.KindVTEP),
		kvstore.KindPrefix(kvstore.State, cluster, kvstore.KindIP),
		kvstore.KindPrefix(kvstore.State, cluster, kvstore.KindSlice),
		kvstore.KindPrefix(kvstore.Local, cluster, kvstore.KindSlice),
		kvstore.KindPrefix(kvstore.Local, cluster, kvstore.KindStatus),
	}
}

// ownedBy tells the keys of a node from those of others in the same directory.
func ownedBy(node string) func(kvstore.Key, []byte) bool {
	return func(k kvstore.Key, value []byte) bool {
		switch k.Kind {
		case kvstore.KindNode, kvstore.KindStatus:
			return k.Names[0] == node
		case kvstore.KindSlice:
			base, _, _ := strings.Cut(k.Names[2], "~")
			return base == node
		}
		m, err := kvstore.Decode(k, value)
		if err != nil {
			return false
		}
		owner, ok := m.(interface{ GetNode() string })
		return ok && owner.GetNode() == node
	}
}

// announceNode publishes the node itself.
func (p *publisher) announceNode() error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	node := &keyspacev1.Node{
		Name: p.cfg.Node, Cluster: p.cfg.Cluster,
		Addresses:     []*keyspacev1.NodeAddress{{Type: keyspacev1.NodeAddress_TYPE_INTERNAL, Ip: p.cfg.NodeAddress.String()}},
		TunnelAddress: p.cfg.NodeAddress.String(),
		Mtu:           uint32(p.mtu), BootId: boot, Zone: p.cfg.Zone, Region: p.cfg.Region, Version: version.String(),
		Capabilities: []string{liveness.Capability},
	}
	if a := p.cfg.nodeAddress6(); a.IsValid() {
		node.Addresses = append(node.Addresses, &keyspacev1.NodeAddress{Type: keyspacev1.NodeAddress_TYPE_INTERNAL, Ip: a.String()})
	}
	var errs []error
	for _, cidr := range p.cfg.podCIDRs() {
		node.PodCidrs = append(node.PodCidrs, cidr.String())
		vtep := &keyspacev1.VTEP{Prefix: cidr.String(), TunnelAddress: p.cfg.NodeAddress.String(), Node: p.cfg.Node}
		errs = append(errs,
			p.writer.Set(kvstore.NewKey(kvstore.State, p.cfg.Cluster, kvstore.KindVTEP, kvstore.PrefixName(cidr)), vtep),
			p.ips.UpsertVTEP(p.cfg.Cluster, vtep))
	}
	// What the node knows of itself does not wait for the keyspace.
	errs = append(errs,
		p.writer.Set(kvstore.NewKey(kvstore.State, p.cfg.Cluster, kvstore.KindNode, p.cfg.Node), node),
		p.ips.UpsertNode(p.cfg.Cluster, node))
	return errors.Join(errs...)
}

func bootID() (string, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return strings.TrimSpace(string(raw)), nil
}

func (p *publisher) ipKey(a netip.Addr) kvstore.Key {
	return kvstore.NewKey(kvstore.State, p.cfg.Cluster, kvstore.KindIP, kvstore.PrefixName(netip.PrefixFrom(a, a.BitLen())))
}

// Announce implements announcer.
func (p *publisher) Announce(ctx context.Context, e *record) error {
	ls, err := labels.ParseSet(e.Labels, labels.CNI)
	if err != nil {
		return err
	}
	for _, a := range e.addrs() {
		p.ips.SetEndpoint(a, e.Identity, e.workload())
	}
	p.view.flush()
	for _, a := range e.addrs() {
		if err := p.writer.Set(p.ipKey(a), &keyspacev1.IPEntry{
			Prefix: netip.PrefixFrom(a, a.BitLen()).String(), Identity: uint32(e.Identity), Node: p.cfg.Node,
			TunnelAddress: p.cfg.NodeAddress.String(), Namespace: e.Namespace, Workload: e.Name,
			NamedPorts: e.namedPorts(),
		}); err != nil {
			return err
		}
		p.setEndpoint(a, &loadbalancer.LocalEndpoint{Namespace: e.Namespace, Name: e.Name, Addr: a, Labels: ls, NamedPorts: e.servicePorts()})
	}
	return p.writer.Flush(ctx)
}

// Withdraw implements announcer. It does not wait for the store: what is gone
// here must not be kept by a store that is away.
func (p *publisher) Withdraw(_ context.Context, e *record) error {
	var errs []error
	for _, a := range e.addrs() {
		p.setEndpoint(a, nil)
		p.ips.DeleteEndpoint(a)
		errs = append(errs, p.writer.Remove(p.ipKey(a)))
	}
	p.view.flush()
	return errors.Join(errs...)
}

func (p *publisher) setEndpoint(a netip.Addr, e *loadbalancer.LocalEndpoint) {
	p.mu.Lock()
	if e == nil {
		delete(p.endpoints, a)
	} else {
		p.endpoints[a] = *e
	}
	p.mu.Unlock()
	p.wakeSlices()
}

// wakeSlices has all slices published soon; it does not block.
func (p *publisher) wakeSlices() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// run keeps slices and status up to date until the context ends.
func (p *publisher) run(ctx context.Context, at func() history) error {
	services := p.view.services.Subscribe()
	defer services.Close()
	tick := time.NewTicker(statusEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-services.C():
			dirty, _ := services.Take()
			for name := range dirty {
				p.publishSlices(name)
			}
		case <-p.changed:
			for name := range p.view.services.All() {
				p.publishSlices(name)
			}
		case <-tick.C:
			p.publishStatus(at())
		case <-p.tell:
			p.publishStatus(at())
		}
	}
}

// wakeStatus has the status published soon; it does not block.
func (p *publisher) wakeStatus() {
	select {
	case p.tell <- struct{}{}:
	default:
	}
}

// publishSlices makes this node's slices of one service what they should be.
func (p *publisher) publishSlices(name serviceName) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.configured {
		return
	}
	var now []kvstore.Key
	if s, ok := p.view.services.Get(name); ok {
		sub := kvstore.Local
		if s.GetShared() {
			sub = kvstore.State
		}
		locals := make([]loadbalancer.LocalEndpoint, 0, len(p.endpoints))
		for _, e := range p.endpoints {
			if p.drained {
				e.State = keyspacev1.Backend_STATE_MAINTENANCE
			}
			locals = append(locals, e)
		}
		for _, slice := range loadbalancer.LocalSlices(s, p.cfg.Node, p.cfg.Zone, locals) {
			key := kvstore.NewKey(sub, p.cfg.Cluster, kvstore.KindSlice, name.namespace, name.name, slice.GetName())
			if err := p.writer.Set(key, slice); err != nil {
				p.log.Error("publish slice", "key", key, "error", err)
			}
			now = append(now, key)
		}
	}
	kept := map[string]bool{}
	for _, k := range now {
		kept[k.String()] = true
	}
	for _, k := range p.slices[name] {
		if !kept[k.String()] {
			if err := p.writer.Remove(k); err != nil {
				p.log.Error("withdraw slice", "key", k, "error", err)
			}
		}
	}
	p.slices[name] = now
	if len(now) == 0 {
		delete(p.slices, name)
	}
}

// publishStatus tells what this node has seen of which history. While records of
// another history are kept alive beside it, the node may know identities that
// are gone: then it says nothing of them.
func (p *publisher) publishStatus(at history) {
	key := kvstore.NewKey(kvstore.Local, p.cfg.Cluster, kvstore.KindStatus, p.cfg.Node)
	seen := p.view.seenRevisions()
	if at.mixed {
		delete(seen, string(kvstore.KindIdentity))
	}
	trust, signer := p.trust()
	if err := p.writer.Set(key, &keyspacev1.NodeStatus{
		Trust: trust, Signer: signer,
		Node: p.cfg.Node, Version: version.String(), Incarnation: at.incarnation, Seen: seen, Enforced: p.enforced(), PolicyProblems: p.inPart(),
		PolicyScope: string(p.cfg.scope()), PolicyMode: string(p.cfg.mode()), PolicyAudit: p.cfg.PolicyAudit, Paths: p.paths(), Refutes: p.refutes(),
	}); err != nil {
		p.log.Error("publish status", "error", err)
	}
}

// servicePorts are the endpoint's port names as services refer to them.
func (r *record) servicePorts() []loadbalancer.NamedPort {
	out := make([]loadbalancer.NamedPort, len(r.Ports))
	for i, p := range r.Ports {
		out[i] = loadbalancer.NamedPort{Name: p.Name, Port: p.Port, Protocol: keyspacev1.Protocol(p.Protocol)}
	}
	return out
}
