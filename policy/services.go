// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy/api"
)

// services are the services that rules name, with who serves them now. An
// identity that serves one has a label for it, which rules select.
type services struct {
	used  map[string]*service
	ids   map[identity.Number]map[string]struct{} // the services that each serves
	addrs map[netip.Addr]map[string]struct{}
	fresh bool // one came into use since NewServices was asked
}

type service struct {
	users int
	ids   map[identity.Number]struct{}
	addrs map[netip.Addr]struct{} // outside the mesh
}

func newServices() *services {
	return &services{used: map[string]*service{}, ids: map[identity.Number]map[string]struct{}{},
		addrs: map[netip.Addr]map[string]struct{}{}}
}

// nodeService begins the label of a reserved identity that serves something: a
// node stands for all nodes, so that only a deny selects it.
const nodeService = "@"

// label is what an identity has that serves a service.
func (s *services) label(n identity.Number, name string) labels.Label {
	if _, reserved := n.Reserved(); reserved {
		name = nodeService + name
	}
	return labels.Label{Source: labels.Service, Key: name}
}

// with are the labels of an identity and those of what it serves.
func (s *services) with(n identity.Number, ls labels.Set) labels.Set {
	served := s.ids[n]
	if len(served) == 0 {
		return ls
	}
	var more []labels.Label
	for name := range served {
		more = append(more, s.label(n, name))
	}
	return ls.With(more...)
}

// serviceSelectors select who serves a service.
func serviceSelectors(name string, deny bool) []api.Selector {
	sel := func(key string) api.Selector {
		return api.NewSelector(api.Requirement{Source: labels.Service, Key: key, Operator: api.In, Values: []string{""}})
	}
	if deny {
		return []api.Selector{sel(name), sel(nodeService + name)}
	}
	return []api.Selector{sel(name)}
}

func (e *Engine) useService(name string) {
	s, ok := e.services.used[name]
	if !ok {
		s = &service{ids: map[identity.Number]struct{}{}, addrs: map[netip.Addr]struct{}{}}
		e.services.used[name] = s
		e.services.fresh = true
	}
	s.users++
}

func (e *Engine) unuseService(name string) {
	s := e.services.used[name]
	if s.users--; s.users > 0 {
		return
	}
	e.setService(name, s, nil, nil)
	delete(e.services.used, name)
}

// Services are the services that rules name, as namespace/name, sorted, and
// whether one came into use since the last call: tell SetService of it.
func (e *Engine) Services() (names []string, fresh bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	fresh, e.services.fresh = e.services.fresh, false
	return slices.Sorted(maps.Keys(e.services.used)), fresh
}

// SetService tells who serves a service: identities, and addresses that are
// outside the mesh. A service that no rule names is ignored.
func (e *Engine) SetService(name string, ids []identity.Number, outside []netip.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if s, ok := e.services.used[name]; ok {
		e.setService(name, s, ids, outside)
	}
}

func (e *Engine) setService(name string, s *service, ids []identity.Number, outside []netip.Addr) {
	now, addrs := setOf(ids), setOf(outside)
	for n := range now {
		if _, ok := s.ids[n]; !ok {
			insert(e.services.ids, n, name)
			e.refreshIdentity(n)
		}
	}
	for n := range s.ids {
		if _, ok := now[n]; !ok {
			erase(e.services.ids, n, name)
			e.refreshIdentity(n)
		}
	}
	for a := range addrs {
		if _, ok := s.addrs[a]; !ok {
			insert(e.services.addrs, a, name)
			e.usePrefix(single(a))
			e.relabel(single(a))
		}
	}
	for a := range s.addrs {
		if _, ok := addrs[a]; !ok {
			erase(e.services.addrs, a, name)
			e.relabel(single(a))
			e.unusePrefix(single(a))
		}
	}
	s.ids, s.addrs = now, addrs
}

// refreshIdentity gives an identity the labels of what it serves now.
func (e *Engine) refreshIdentity(n identity.Number) {
	if id, ok := e.identities[n]; ok {
		e.setIdentity(n, id.own, id.net)
	}
}

func single(a netip.Addr) prefixKey { return prefixKey{netip.PrefixFrom(a, a.BitLen()), false} }

func setOf[T comparable](list []T) map[T]struct{} {
	out := make(map[T]struct{}, len(list))
	for _, v := range list {
		out[v] = struct{}{}
	}
	return out
}
