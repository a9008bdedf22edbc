// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hawser-mesh/hawser/agent/dns"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/loadbalancer"
)

// names are what the name server answers from: an index of the records that
// view has, by name and by address.
type names struct {
	own         string // cluster
	lb          *loadbalancer.Desired
	ready, full <-chan struct{}
	judged      atomic.Bool // it is known which peers' data has expired

	mu         sync.RWMutex
	vips       map[netip.Addr]map[serviceName]struct{}
	services   map[serviceName][]netip.Addr
	workloads  *addresses
	namespaces map[string]int // of services and of the own cluster's workloads
	ranges     map[string][]netip.Prefix
}

func newNames(own string, lb *loadbalancer.Desired, ready, full <-chan struct{}) *names {
	return &names{
		own: own, lb: lb, ready: ready, full: full,
		vips: map[netip.Addr]map[serviceName]struct{}{}, services: map[serviceName][]netip.Addr{},
		workloads: newAddresses(), namespaces: map[string]int{}, ranges: map[string][]netip.Prefix{},
	}
}

// setService takes the addresses of a service of the own cluster; nil when it is
// gone.
func (n *names) setService(name serviceName, s *keyspacev1.Service) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if old, was := n.services[name]; was {
		for _, a := range old {
			drop(n.vips, a, name)
		}
		delete(n.services, name)
		n.count(name.namespace, -1)
	}
	if s == nil {
		return
	}
	var vips []netip.Addr
	for _, text := range s.GetVips() {
		if a, err := netip.ParseAddr(text); err == nil {
			vips = append(vips, a)
			put(n.vips, a, name)
		}
	}
	n.services[name] = vips
	n.count(name.namespace, 1)
}

// setAddress takes a cluster's record of an address; nil when it is gone. Prefixes
// are no addresses.
func (n *names) setAddress(cluster string, p netip.Prefix, r *keyspacev1.IPEntry) {
	if !p.IsSingleIP() {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if old, was := n.workloads.remove(p.Addr(), cluster); was && cluster == n.own {
		n.count(old.namespace, -1)
	}
	if r.GetWorkload() == "" {
		return
	}
	n.workloads.set(p.Addr(), workload{cluster, r.GetNamespace(), r.GetWorkload()})
	if cluster == n.own {
		n.count(r.GetNamespace(), 1)
	}
}

// setRanges takes a cluster's ranges; nil when it is gone.
func (n *names) setRanges(cluster string, ranges []netip.Prefix) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ranges[cluster] = ranges; ranges == nil {
		delete(n.ranges, cluster)
	}
}

func (n *names) count(namespace string, by int) {
	if n.namespaces[namespace] += by; n.namespaces[namespace] == 0 {
		delete(n.namespaces, namespace)
	}
}

func put[A, B comparable](m map[A]map[B]struct{}, a A, b B) {
	if m[a] == nil {
		m[a] = map[B]struct{}{}
	}
	m[a][b] = struct{}{}
}

func drop[A, B comparable](m map[A]map[B]struct{}, a A, b B) {
	if delete(m[a], b); len(m[a]) == 0 {
		delete(m, a)
	}
}

// Service implements dns.Directory.
func (n *names) Service(namespace, name string) ([]netip.Addr, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	vips, ok := n.services[serviceName{namespace, name}]
	return vips, ok
}

// Backends implements dns.Directory: what connections are balanced over, and by
// the same rank.
func (n *names) Backends(namespace, name string) []dns.Backend {
	v, _ := n.lb.Get(namespace, name)
	var out []dns.Backend
	for _, b := range v.Backends {
		if rank, takes := b.Rank(); takes {
			_, workload, _ := strings.Cut(b.Workload, "/")
			out = append(out, dns.Backend{Cluster: b.Cluster, Workload: workload, Addr: b.Addr, Rank: rank, Own: b.Cluster == n.own})
		}
	}
	return out
}

// believes reports whether the workloads of a cluster have names: not those of a
// peer whose data has expired, by what its backends are withdrawn for, too.
func (n *names) believes(cluster string) bool {
	return cluster == n.own || n.judged.Load() && n.lb.Age(cluster) != loadbalancer.Expired
}

// Workload implements dns.Directory.
func (n *names) Workload(cluster, namespace, name string) []netip.Addr {
	if cluster == "" {
		cluster = n.own
	}
	if !n.believes(cluster) {
		return nil
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	return slices.SortedFunc(n.workloads.of(workload{cluster, namespace, name}), netip.Addr.Compare)
}

// Cluster implements dns.Directory.
func (n *names) Cluster(name string) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	_, ok := n.ranges[name]
	return ok || name == n.own
}

// Namespace implements dns.Directory.
func (n *names) Namespace(name string) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.namespaces[name] > 0
}

// Names implements dns.Directory. Workloads of peers have their cluster in
// front, as when they are asked for: what a peer publishes never looks like a
// name of the own cluster. Those of a peer whose data is stale come last.
func (n *names) Names(a netip.Addr) []string {
	n.mu.RLock()
	defer n.mu.RUnlock()
	var out []string
	ages := map[string]loadbalancer.Age{}
	for s := range n.vips[a] {
		out = append(out, s.name+"."+s.namespace)
	}
	for w := range n.workloads.workloads(a) {
		name := w.name + "." + w.namespace
		if _, isService := n.services[serviceName{w.namespace, w.name}]; isService {
			continue // the name means something else
		}
		if !n.believes(w.cluster) {
			continue
		}
		if w.cluster != n.own {
			name = w.cluster + "." + name
			ages[name] = n.lb.Age(w.cluster)
		}
		out = append(out, name)
	}
	slices.SortFunc(out, func(a, b string) int { return cmp.Or(cmp.Compare(ages[a], ages[b]), cmp.Compare(a, b)) })
	return out
}

// Inside implements dns.Directory.
func (n *names) Inside(a netip.Addr) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, ranges := range n.ranges {
		if slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return true
		}
	}
	return false
}

// Known implements dns.Directory.
func (n *names) Known() (own, all bool) { return isClosed(n.ready), isClosed(n.full) }

// mayAsk says whose questions the node answers: its own, and those of the pods
// of its cluster. A pod may have other nodes as further servers, for the time in
// which its own node's agent is replaced.
func (n *names) mayAsk(node netip.Addr, pods []netip.Prefix) func(netip.Addr) bool {
	return func(a netip.Addr) bool {
		if a == node || a.IsLoopback() || slices.ContainsFunc(pods, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return true
		}
		n.mu.RLock()
		defer n.mu.RUnlock()
		return slices.ContainsFunc(n.ranges[n.own], func(p netip.Prefix) bool { return p.Contains(a) })
	}
}

// openNames makes the name server, unless it is off.
func (a *Agent) openNames() error {
	if a.cfg.DNSListen == DNSOff {
		return nil
	}
	at := netip.AddrPortFrom(a.cfg.NodeAddress, dns.Port)
	if a.cfg.DNSListen != "" {
		at = netip.MustParseAddrPort(a.cfg.DNSListen) // validated
	}
	var upstreams []netip.AddrPort
	for _, u := range a.cfg.DNSUpstreams {
		ap, err := parseUpstream(u)
		if err != nil {
			return err // validated
		}
		upstreams = append(upstreams, ap)
	}
	if len(upstreams) == 0 {
		var err error
		if upstreams, err = dns.HostUpstreams("/etc/resolv.conf", at); err != nil {
			return err
		}
	}
	var err error
	a.dns, err = dns.New(dns.Config{
		Listen: at, Upstreams: upstreams, Names: a.view.names, Log: a.log,
		Allowed: a.view.names.mayAsk(a.cfg.NodeAddress, a.cfg.podCIDRs()),
	})
	return err
}

func (a *Agent) runNames(ctx context.Context) error {
	if a.dns == nil {
		return nil
	}
	return a.dns.Run(ctx)
}
