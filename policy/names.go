// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"iter"
	"net/netip"
	"slices"

	"github.com/hawser-mesh/hawser/datapath"
)

// names are the ports that addresses have names for, and the parts that ask for
// them: an egress part with an ipBlock means, at each address in it, the port that
// the workload there calls so. Each such address becomes a prefix in use, so that
// it has an identity, and a row, of its own.
type names struct {
	ports map[netip.Addr][]NamedPort
	addrs map[namedPort]map[netip.Addr]struct{}
	parts map[namedPort]map[*part]struct{}
}

func newNames() *names {
	return &names{ports: map[netip.Addr][]NamedPort{}, addrs: map[namedPort]map[netip.Addr]struct{}{},
		parts: map[namedPort]map[*part]struct{}{}}
}

// SetAddressPorts tells the names that the workload at an address has for its
// ports; none when there is no workload.
func (e *Engine) SetAddressPorts(a netip.Addr, ports []NamedPort) {
	e.mu.Lock()
	defer e.mu.Unlock()
	ports = sortedPorts(ports)
	old := e.names.ports[a]
	if slices.Equal(old, ports) {
		return
	}
	// New uses come before old ones go, so that what both have is not retired.
	gone := slices.Collect(e.names.asked(a, old))
	for n := range namesIn(old) {
		erase(e.names.addrs, n, a)
	}
	e.names.ports[a] = ports
	if len(ports) == 0 {
		delete(e.names.ports, a)
	}
	for n := range namesIn(ports) {
		insert(e.names.addrs, n, a)
	}
	for k := range e.names.asked(a, ports) {
		e.usePrefix(k)
	}
	for _, k := range gone {
		e.unusePrefix(k)
	}
	if p, ok := e.prefixes.used[1].Get(block(a).Prefix); ok {
		if id, ok := e.identities[p.number]; ok {
			e.setIdentity(id.number, id.own, id.net)
		}
	}
}

func block(a netip.Addr) prefixKey { return prefixKey{netip.PrefixFrom(a, a.BitLen()), true} }

// namesIn are the names in a list, each once.
func namesIn(ports []NamedPort) map[namedPort]struct{} {
	out := make(map[namedPort]struct{}, len(ports))
	for _, p := range ports {
		out[namedPort{p.Name, p.Protocol}] = struct{}{}
	}
	return out
}

// asked is the prefix of an address, once for each part and name that asks for it.
func (x *names) asked(a netip.Addr, ports []NamedPort) iter.Seq[prefixKey] {
	return func(yield func(prefixKey) bool) {
		for n := range namesIn(ports) {
			for p := range x.parts[n] {
				if p.hasBlock(a) && !yield(block(a)) {
					return
				}
			}
		}
	}
}

// hasBlock reports whether an address is in an ipBlock of a part.
func (p *part) hasBlock(a netip.Addr) bool {
	k := block(a)
	return slices.ContainsFunc(p.nets, func(n *net) bool {
		return n.block && n.Contains(a) && !n.except.cover(k.Prefix)
	})
}

// useNames has the addresses that an egress part's names concern be prefixes in
// use, or undoes that when by is -1.
func (e *Engine) useNames(p *part, by int) {
	if p.dir != int(datapath.Egress) || !slices.ContainsFunc(p.nets, func(n *net) bool { return n.block }) {
		return
	}
	seen := map[namedPort]struct{}{}
	for _, n := range p.named {
		if _, twice := seen[n]; twice {
			continue
		}
		seen[n] = struct{}{}
		if by > 0 {
			insert(e.names.parts, n, p)
		} else {
			erase(e.names.parts, n, p)
		}
		for a := range e.names.addrs[n] {
			switch {
			case !p.hasBlock(a):
			case by > 0:
				e.usePrefix(block(a))
			default:
				e.unusePrefix(block(a))
			}
		}
	}
}

// portsAt are the names for ports of whose identity a prefix is.
func (e *Engine) portsAt(k prefixKey) []NamedPort {
	if !k.block || !k.IsSingleIP() {
		return nil
	}
	return e.names.ports[k.Addr()]
}
