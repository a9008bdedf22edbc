// SPDX-License-Identifier: Apache-2.0

package agent

import (
	gomaps "maps"
	"net/netip"
	"strings"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/ipcache"
	"github.com/hawser-mesh/hawser/loadbalancer"
	"github.com/hawser-mesh/hawser/policy"
)

// backing tells the engine who serves the services that policies name: the
// identities behind their backends' addresses, local and of other clusters, and
// the addresses that nobody in the mesh has. A backend counts in every state, so
// that open connections to one that is going are let end.
type backing struct {
	addrs map[netip.Addr]map[string]struct{} // backends → services, as last told
	dirty map[string]struct{}
	all   bool
}

func newBacking() *backing {
	return &backing{addrs: map[netip.Addr]map[string]struct{}{}, dirty: map[string]struct{}{}}
}

// service marks a service that changed.
func (b *backing) service(namespace, name string) { b.dirty[namespace+"/"+name] = struct{}{} }

// prefix marks the services that have a backend in a prefix whose owner changed.
func (b *backing) prefix(p netip.Prefix) {
	if !p.IsSingleIP() {
		b.all = true
		return
	}
	for name := range b.addrs[p.Addr()] {
		b.dirty[name] = struct{}{}
	}
}

// tell brings the engine up to date.
func (b *backing) tell(e *policy.Engine, lb *loadbalancer.Desired, ips *ipcache.Cache) {
	names, fresh := e.Services()
	if !fresh && !b.all && len(b.dirty) == 0 {
		return
	}
	used := map[string]bool{}
	for _, name := range names {
		used[name] = true
		if _, dirty := b.dirty[name]; fresh || b.all || dirty {
			b.one(name, e, lb, ips)
		}
	}
	if fresh {
		b.forget(func(name string) bool { return !used[name] })
	}
	clear(b.dirty)
	b.all = false
}

// forget drops the addresses of services.
func (b *backing) forget(which func(name string) bool) {
	for a, names := range b.addrs {
		gomaps.DeleteFunc(names, func(name string, _ struct{}) bool { return which(name) })
		if len(names) == 0 {
			delete(b.addrs, a)
		}
	}
}

func (b *backing) one(service string, e *policy.Engine, lb *loadbalancer.Desired, ips *ipcache.Cache) {
	b.forget(func(name string) bool { return name == service })
	namespace, name, _ := strings.Cut(service, "/")
	v, _ := lb.Get(namespace, name)
	var ids []identity.Number
	var outside []netip.Addr
	for _, backend := range v.Backends {
		if b.addrs[backend.Addr] == nil {
			b.addrs[backend.Addr] = map[string]struct{}{}
		}
		b.addrs[backend.Addr][service] = struct{}{}
		entry, _ := ips.Lookup(backend.Addr)
		switch {
		case entry.Identity == identity.Unknown: // of the mesh, and not known yet
		case entry.Identity == identity.World || entry.Identity.IsLocal():
			outside = append(outside, backend.Addr)
		default:
			ids = append(ids, entry.Identity)
		}
	}
	e.SetService(service, ids, outside)
}
