// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"hash/fnv"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy/api"
)

// prefixKey tells the prefixes apart that have identities. Those of ipBlocks
// are a space of their own: they concern every address, the others only
// addresses outside the mesh.
type prefixKey struct {
	netip.Prefix
	block bool
}

// prefix is a prefix that policies use, with its identity. The identity of an
// address is that of the longest such prefix, and has the labels of all.
type prefix struct {
	prefixKey
	number identity.Number
	users  int
	aged   bool // has been out of use since before the last DropRetired
}

type prefixes struct {
	used    [2]*bart.Table[*prefix] // by block: 1
	retired map[prefixKey]*prefix
	dirty   map[prefixKey]struct{}
}

func newPrefixes() *prefixes {
	return &prefixes{used: [2]*bart.Table[*prefix]{{}, {}}, retired: map[prefixKey]*prefix{}, dirty: map[prefixKey]struct{}{}}
}

func (k prefixKey) space() int {
	if k.block {
		return 1
	}
	return 0
}

// hidesIPv4 reports whether a longest-prefix match in one trie for both families,
// with IPv4 mapped into IPv6, would find k for IPv4 addresses.
func (k prefixKey) hidesIPv4() bool {
	return k.Addr().Is6() && k.Bits() <= 96 && k.Contains(netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff}))
}

func allIPv4(block bool) prefixKey {
	return prefixKey{netip.PrefixFrom(netip.IPv4Unspecified(), 0), block}
}

// usePrefix makes sure that a prefix has an identity and counts one user.
func (e *Engine) usePrefix(k prefixKey) {
	t := e.prefixes.used[k.space()]
	if p, ok := t.Get(k.Prefix); ok {
		p.users++
		return
	}
	if k.hidesIPv4() {
		e.usePrefix(allIPv4(k.block))
	}
	p, ok := e.prefixes.retired[k]
	if !ok {
		p = &prefix{prefixKey: k, number: e.prefixNumber(k)}
	}
	delete(e.prefixes.retired, k)
	p.users, p.aged = 1, false
	t.Insert(k.Prefix, p)
	e.relabel(k)
}

// unusePrefix undoes one usePrefix. The identity stays until DropRetired, so
// that the entries for it outlive the kernel's use of it.
func (e *Engine) unusePrefix(k prefixKey) {
	t := e.prefixes.used[k.space()]
	p, ok := t.Get(k.Prefix)
	if !ok {
		return
	}
	if p.users--; p.users > 0 {
		return
	}
	t.Delete(k.Prefix)
	e.prefixes.retired[k] = p
	e.relabel(k)
	if k.hidesIPv4() {
		e.unusePrefix(allIPv4(k.block))
	}
}

// relabel brings the identities inside a prefix up to date that was added or
// removed.
func (e *Engine) relabel(k prefixKey) {
	e.prefixes.dirty[k] = struct{}{}
	t := e.prefixes.used[k.space()]
	for _, p := range t.Subnets(k.Prefix) {
		var ls []labels.Label
		for super := range t.Supernets(p.Prefix) {
			ls = append(ls, labels.Label{Source: labels.CIDR, Key: super.String()})
		}
		if !k.block {
			ls = append(ls, worldLabel())
			if p.IsSingleIP() {
				for name := range e.services.addrs[p.Addr()] {
					ls = append(ls, labels.Label{Source: labels.Service, Key: name})
				}
			}
		}
		e.setIdentity(p.number, labels.New(ls...), p.prefixKey)
	}
}

func worldLabel() labels.Label {
	name, _ := identity.World.Reserved()
	return labels.Label{Source: labels.Reserved, Key: name}
}

// prefixNumber is a hash of the prefix, so that the number is the same after a
// restart, when the kernel still has the old ones, and on every node, except
// where two collide.
func (e *Engine) prefixNumber(k prefixKey) identity.Number {
	first, size := identity.LocalBase, uint32(identity.BlockBase-identity.LocalBase)
	if k.block {
		first, size = identity.BlockBase, uint32(identity.BlockBase)
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(k.String()))
	for at := h.Sum32() % size; ; at = (at + 1) % size {
		n := first + identity.Number(at)
		if _, taken := e.identities[n]; !taken {
			return n
		}
	}
}

func prefixKeys(c api.CIDR) []prefixKey {
	keys := []prefixKey{{c.Prefix, c.Block}}
	for _, p := range c.Except {
		keys = append(keys, prefixKey{p, c.Block})
	}
	return keys
}

// CIDR is a prefix that policies use, with the identity of the addresses of
// which it is the longest.
type CIDR struct {
	Prefix netip.Prefix
	// Block tells those of ipBlocks, which are looked up beside the identity of
	// an address, from those which are the identity of addresses outside the
	// mesh.
	Block  bool
	Number identity.Number
	Gone   bool // no policy uses it any more
}

// CIDRChanges are the prefixes that came or went since the last call. Bring them
// into the ipcache after the rule sets: those have entries for what comes
// already, and keep entries for what went until DropRetired.
func (e *Engine) CIDRChanges() []CIDR {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []CIDR
	for k := range e.prefixes.dirty {
		if p, ok := e.prefixes.used[k.space()].Get(k.Prefix); ok {
			out = append(out, CIDR{k.Prefix, k.block, p.number, false})
		} else if p, ok := e.prefixes.retired[k]; ok {
			out = append(out, CIDR{k.Prefix, k.block, p.number, true})
		}
	}
	clear(e.prefixes.dirty)
	slices.SortFunc(out, func(a, b CIDR) int { return strings.Compare(a.Prefix.String(), b.Prefix.String()) })
	return out
}

// DropRetired forgets the identities of prefixes that were out of use at the
// call before already, and reports whether there were any. Call it on a timer
// that is slower than the kernel is brought up to date.
func (e *Engine) DropRetired() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	dropped := false
	for k, p := range maps.Clone(e.prefixes.retired) {
		if !p.aged {
			p.aged = true
			continue
		}
		delete(e.prefixes.retired, k)
		if id, ok := e.identities[p.number]; ok {
			e.dropIdentity(id)
		}
		dropped = true
	}
	return dropped
}

// Labels are those of an identity that the engine knows.
func (e *Engine) Labels(n identity.Number) (labels.Set, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	id, ok := e.identities[n]
	if !ok {
		return nil, false
	}
	return id.own, true
}
