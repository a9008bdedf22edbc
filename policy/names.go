// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/hawser-mesh/hawser/datapath"
)

// MaxBlockPorts is how many ports an object may mean by names beside its ipBlocks
// at the addresses of one cluster: how many there are is that cluster's doing, not
// the object's. Those that were there first stay, until the object is changed:
// then they are taken in the order of addresses. What is beyond is not let out to.
// Other clusters' have room of their own.
const MaxBlockPorts = 1 << 13

// names are the ports that addresses have names for, and the objects that ask for
// them: an egress part with an ipBlock means, at each address in it, the port that
// the workload there calls so. Each such address becomes a prefix in use, so that
// it has an identity, and a row, of its own.
type names struct {
	at     map[netip.Addr]addressPorts
	beside map[netip.Addr][]addressPorts // what other clusters say of it, the best first
	addrs  map[namedPort]map[netip.Addr]struct{}
	askers map[namedPort]map[*asker]struct{}
	heard  map[call]int // by how many askers
}

type addressPorts struct {
	cluster string
	ports   []NamedPort
}

// call is the ports of one name at an address.
type call struct {
	addr netip.Addr
	name namedPort
}

// asker is an object with ports by name beside ipBlocks of egress.
type asker struct {
	object  string
	parts   map[namedPort][]*part
	heard   map[call]int        // how many ports each is
	ports   map[string]int      // those, by cluster
	waiting map[string]*waiting // for room, by cluster
}

func newNames() *names {
	return &names{at: map[netip.Addr]addressPorts{}, beside: map[netip.Addr][]addressPorts{}, addrs: map[namedPort]map[netip.Addr]struct{}{},
		askers: map[namedPort]map[*asker]struct{}{}, heard: map[call]int{}}
}

// SetAddressPorts tells the names that the workload at an address, which is of a
// cluster, has for its ports; nil when the cluster has none there. Of clusters that
// have the same address the own one's counts, also one without names, then that of
// the first by name.
func (e *Engine) SetAddressPorts(cluster string, a netip.Addr, ports []NamedPort) {
	e.mu.Lock()
	defer e.mu.Unlock()
	keep := len(ports) > 0 || ports != nil && cluster == e.cluster
	old := e.names.at[a]
	now, there := e.names.tell(e.cluster, a, addressPorts{cluster, sortedPorts(ports)}, keep)
	if slices.Equal(old.ports, now.ports) && (old.cluster == now.cluster || len(now.ports) == 0) {
		e.names.set(a, now, there)
		return
	}
	// What is asked for before and after is not retired in between.
	_, inUse := e.prefixes.used[1].Get(block(a).Prefix)
	if inUse {
		e.usePrefix(block(a))
	}
	before := map[*asker]struct{}{}
	for c, x := range e.names.asked(a, old.ports) {
		before[x] = struct{}{}
		e.unhear(x, c)
	}
	for n := range namesIn(old.ports) {
		erase(e.names.addrs, n, a)
	}
	e.names.set(a, now, there)
	for n := range namesIn(now.ports) {
		insert(e.names.addrs, n, a)
	}
	for c, x := range e.names.asked(a, now.ports) {
		e.hear(x, c)
	}
	if inUse {
		e.unusePrefix(block(a))
	}
	e.refreshPorts(a)
	for x := range before {
		e.refill(x, old.cluster)
	}
}

// tell notes what a cluster says of an address, or that it says nothing more, and
// returns what counts there now, if there is anything.
func (x *names) tell(own string, a netip.Addr, said addressPorts, keep bool) (best addressPorts, there bool) {
	var all []addressPorts
	if old, ok := x.at[a]; ok {
		all = append(all, old)
	}
	all = append(all, x.beside[a]...)
	all = slices.DeleteFunc(all, func(p addressPorts) bool { return p.cluster == said.cluster })
	if keep {
		all = append(all, said)
	}
	slices.SortFunc(all, func(p, q addressPorts) int {
		switch {
		case p.cluster == own:
			return -1
		case q.cluster == own:
			return 1
		}
		return strings.Compare(p.cluster, q.cluster)
	})
	if delete(x.beside, a); len(all) > 1 {
		x.beside[a] = all[1:]
	}
	if len(all) == 0 {
		return addressPorts{}, false
	}
	return all[0], true
}

// set has what counts at an address be that.
func (x *names) set(a netip.Addr, now addressPorts, there bool) {
	if delete(x.at, a); there {
		x.at[a] = now
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

// asked are the names among an address's, in order, that objects ask for there, with who does.
func (x *names) asked(a netip.Addr, ports []NamedPort) iter.Seq2[call, *asker] {
	return func(yield func(call, *asker) bool) {
		for _, n := range slices.SortedFunc(maps.Keys(namesIn(ports)), compareNames) {
			for by := range x.askers[n] {
				if by.means(n, a) && !yield(call{a, n}, by) {
					return
				}
			}
		}
	}
}

// means reports whether an address is in an ipBlock beside a name.
func (x *asker) means(n namedPort, a netip.Addr) bool {
	return slices.ContainsFunc(x.parts[n], func(p *part) bool { return p.hasBlock(a) })
}

// denies reports whether it is in one of what is denied: where an operator says
// that API servers are, since ipBlocks only allow. Those are few.
func (x *asker) denies(c call) bool {
	return slices.ContainsFunc(x.parts[c.name], func(p *part) bool { return p.deny && p.hasBlock(c.addr) })
}

// hasBlock reports whether an address is in an ipBlock of a part.
func (p *part) hasBlock(a netip.Addr) bool {
	k := block(a)
	return slices.ContainsFunc(p.nets, func(n *net) bool {
		return n.block && n.Contains(a) && !n.except.cover(k.Prefix)
	})
}

// count is how many ports have the name at the address.
func (x *names) count(c call) (n int) {
	for _, p := range x.at[c.addr].ports {
		if (namedPort{p.Name, p.Protocol}) == c.name {
			n++
		}
	}
	return n
}

// hear has the address be a prefix in use, if there is room; else it waits.
func (e *Engine) hear(x *asker, c call) {
	at, n := e.names.at[c.addr], e.names.count(c)
	if x.ports[at.cluster]+n > MaxBlockPorts && !x.denies(c) {
		x.wait(at.cluster, c)
		return
	}
	x.leave(at.cluster, c)
	x.heard[c] = n
	x.ports[at.cluster] += n
	e.names.heard[c]++
	e.usePrefix(block(c.addr))
	e.refreshPorts(c.addr)
}

// unhear undoes hear.
func (e *Engine) unhear(x *asker, c call) {
	cluster := e.names.at[c.addr].cluster
	x.leave(cluster, c)
	n, ok := x.heard[c]
	if !ok {
		return
	}
	delete(x.heard, c)
	if x.ports[cluster] -= n; x.ports[cluster] == 0 {
		delete(x.ports, cluster)
	}
	if e.names.heard[c]--; e.names.heard[c] == 0 {
		delete(e.names.heard, c)
	}
	e.unusePrefix(block(c.addr))
	e.refreshPorts(c.addr)
}

// startAsking has the addresses that an object's names concern be prefixes in use;
// nil when there are no such names.
func (e *Engine) startAsking(o *object) *asker {
	x := &asker{object: o.spec.ID(), parts: map[namedPort][]*part{}, heard: map[call]int{}, ports: map[string]int{},
		waiting: map[string]*waiting{}}
	for _, r := range o.rules {
		for _, p := range r.parts {
			if p.dir != int(datapath.Egress) || !slices.ContainsFunc(p.nets, func(n *net) bool { return n.block }) {
				continue
			}
			for _, n := range p.named {
				x.parts[n] = append(x.parts[n], p)
			}
		}
	}
	if len(x.parts) == 0 {
		return nil
	}
	var calls []call
	for n := range x.parts {
		insert(e.names.askers, n, x)
		for a := range e.names.addrs[n] {
			if x.means(n, a) {
				calls = append(calls, call{a, n})
			}
		}
	}
	slices.SortFunc(calls, compareCalls)
	for _, c := range calls {
		e.hear(x, c)
	}
	return x
}

// stopAsking undoes startAsking.
func (e *Engine) stopAsking(x *asker) {
	if x == nil {
		return
	}
	for n := range x.parts {
		erase(e.names.askers, n, x)
	}
	for _, c := range slices.Collect(maps.Keys(x.heard)) {
		e.unhear(x, c)
	}
}

// portsAt are the names for ports of whose identity a prefix is, as far as an
// object asks for them and has room.
func (e *Engine) portsAt(k prefixKey) (out []NamedPort) {
	if !k.block || !k.IsSingleIP() {
		return nil
	}
	for _, p := range e.names.at[k.Addr()].ports {
		if e.names.heard[call{k.Addr(), namedPort{p.Name, p.Protocol}}] > 0 {
			out = append(out, p)
		}
	}
	return out
}

// refreshPorts brings the identity of an address up to date, if it is in use.
func (e *Engine) refreshPorts(a netip.Addr) {
	if p, ok := e.prefixes.used[1].Get(block(a).Prefix); ok {
		e.refreshIdentity(p.number)
	}
}

// Shortage is what an object means by names beside its ipBlocks and has no room for.
type Shortage struct {
	Object  string // namespace/name
	Cluster string // whose addresses they are
	Names   int    // names at addresses that are left out
}

// Shortages are all that there are, sorted.
func (e *Engine) Shortages() (out []Shortage) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, o := range e.objects {
		if o.names == nil {
			continue
		}
		for cluster, list := range o.names.waiting {
			out = append(out, Shortage{o.names.object, cluster, list.calls})
		}
	}
	slices.SortFunc(out, func(a, b Shortage) int {
		return cmp.Or(strings.Compare(a.Object, b.Object), strings.Compare(a.Cluster, b.Cluster))
	})
	return out
}
