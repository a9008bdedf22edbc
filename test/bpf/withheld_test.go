// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/identity"
)

// blocklist is a policy that denies parts of what it allows: those that find no
// room in the kernel must not pass with the rest.
type blocklist struct {
	name   string
	wide   string // what is allowed; empty: the world
	part   string // format of the i-th part that is denied
	member string // format of an address in it
	other  string // an address that is neither allowed nor in wide; empty: none
	hosts  bool   // the parts are single addresses
	block  bool   // they are ipBlocks, with the parts excepted
}

func blocklists(v6 bool) []blocklist {
	if v6 {
		return []blocklist{
			{name: "prefix in a prefix", wide: "2001:db8:5::/48", part: "2001:db8:5:%x::/64", member: "2001:db8:5:%x::7", other: "2001:db8:6::1"},
			{name: "address in a prefix", wide: "2001:db8:5::/48", part: "2001:db8:5:%x::7/128", member: "2001:db8:5:%x::7", other: "2001:db8:6::1", hosts: true},
			{name: "prefix in the world", part: "2001:db8:5:%x::/64", member: "2001:db8:5:%x::7"},
			{name: "prefix excepted from an ipBlock", wide: "2001:db8:5::/48", part: "2001:db8:5:%x::/64", member: "2001:db8:5:%x::7", block: true},
		}
	}
	return []blocklist{
		{name: "prefix in a prefix", wide: "50.0.0.0/8", part: "50.0.%d.0/24", member: "50.0.%d.7", other: "51.0.0.1"},
		{name: "address in a prefix", wide: "50.0.0.0/8", part: "50.0.%d.7/32", member: "50.0.%d.7", other: "51.0.0.1", hosts: true},
		{name: "prefix in the world", part: "50.0.%d.0/24", member: "50.0.%d.7"},
		{name: "prefix excepted from an ipBlock", wide: "50.0.0.0/8", part: "50.0.%d.0/24", member: "50.0.%d.7", block: true},
	}
}

func TestWhatIsMissingIsNotAllowed(t *testing.T) {
	for _, f := range families() {
		for _, b := range blocklists(isIPv6(f.a.ip)) {
			t.Run(f.prefix+b.name, func(t *testing.T) { b.test(t, f) })
		}
	}
}

func (b blocklist) key(p string) datapath.IPKey {
	k := key(p)
	if b.block {
		k.ClusterID = datapath.BlockSpace
	}
	return k
}

func (b blocklist) test(t *testing.T, f family) {
	const parts = 40
	sizes := loader.SmallMaps()
	sizes.Prefixes, sizes.IPCache = 24, 32
	h := newHarnessWith(t, loader.Config{MapSizes: sizes, ClusterBits: identity.DefaultClusterBits, NodeAddr6: addr(self6)})
	base, allowed := identity.LocalBase, identity.World
	if b.block {
		base = identity.BlockBase
	}
	set := datapath.RuleSet{ID: 5, Ingress: true, Egress: true, Entries: entries{}}
	allow := func(n identity.Number, deny bool) {
		for _, d := range []datapath.Direction{datapath.Ingress, datapath.Egress} {
			set.Entries[datapath.PolicyKey{Direction: d, Identity: n}] = datapath.PolicyEntry{Deny: deny}
		}
	}
	if b.wide != "" {
		allowed = base
		h.tables.IPCache.Set(b.key(b.wide), datapath.IPEntry{Identity: allowed})
	}
	allow(allowed, false)
	number := func(i int) identity.Number { return base + 1 + identity.Number(i) }
	for i := range parts {
		if !b.block { // an excepted part merely is in no ipBlock that is allowed
			allow(number(i), true)
		}
	}
	h.rules(f.a, set)
	ask := func(a string) (in, out bool) {
		in = h.fromOverlay(h.plain(segment(a, f.a.ip, 1000, 80, "S"))).act != actShot
		out = h.fromPod(f.a, h.sent(f.a, segment(f.a.ip, a, 2000, 80, "S"))).act != actShot
		return in, out
	}
	member := func(i int) string { return fmt.Sprintf(b.member, i) }
	if in, out := ask(member(parts + 1)); !in || !out {
		t.Fatalf("what is allowed does not pass: %v %v", in, out)
	}
	for i := range parts {
		h.tables.IPCache.Set(b.key(fmt.Sprintf(b.part, i)), datapath.IPEntry{Identity: number(i)})
	}
	kernel, size := "ipcache_prefix", sizes.Prefixes
	if b.hosts {
		kernel, size = "ipcache", sizes.IPCache
	}
	h.told("ipcache", kernel, size)
	w := h.r.Withheld()
	if len(w.Missing) == 0 || len(w.Missing) == parts || len(w.Around) != 1 {
		t.Errorf("missing %d, hidden %v", len(w.Missing), w.Around)
	}
	for i := range parts {
		if in, out := ask(member(i)); in || out {
			t.Errorf("%s is denied and passes: in %v, out %v", member(i), in, out)
		}
	}
	// What is found instead of them fails closed, and nothing else.
	why := maps.DropIdentityUnknown
	if b.block {
		why = maps.DropPolicyDenied
	}
	rest := member(parts + 1)
	if in, out := ask(rest); in || out {
		t.Errorf("%s of %q: in %v, out %v", rest, b.wide, in, out)
	}
	told := h.events()
	for _, e := range told[len(told)-2:] {
		if e.Reason != why {
			t.Errorf("the rest of %q is dropped with %s", b.wide, maps.ReasonName(e.Reason))
		}
	}
	if b.other != "" {
		ask(b.other)
		if e := h.events(); len(e) != 2 || e[0].Reason != maps.DropPolicyDenied {
			t.Errorf("what is not in %q: %+v", b.wide, e)
		}
	}
	// A wide one that is written anew while narrow ones are missing stays hidden.
	if b.wide != "" {
		h.tables.IPCache.Set(b.key(b.wide), datapath.IPEntry{Identity: allowed, Tunnel: netip.MustParseAddr(self)})
		h.tables.IPCache.Set(b.key(b.wide), datapath.IPEntry{Identity: allowed})
		h.told("ipcache", kernel, size)
		if in, out := ask(member(parts - 1)); in || out {
			t.Errorf("after a change of the wide one: in %v, out %v", in, out)
		}
	}
	for i := 8; i < parts; i++ { // room again
		h.tables.IPCache.Delete(b.key(fmt.Sprintf(b.part, i)))
	}
	h.settled("ipcache")
	if w := h.r.Withheld(); len(w.Missing) != 0 || len(w.Around) != 0 {
		t.Errorf("with room: %+v", w)
	}
	if in, out := ask(member(parts - 1)); !in || !out {
		t.Errorf("with room, what is allowed again: in %v, out %v", in, out)
	}
	for i := range 8 {
		if in, out := ask(member(i)); in || out {
			t.Errorf("with room, %s is denied and passes: in %v, out %v", member(i), in, out)
		}
	}
}

// A prefix or a workload whose deny finds no room in the policy map is unknown, not
// allowed with all the rest.
func TestPolicyFull(t *testing.T) {
	sizes := loader.SmallMaps()
	sizes.Policy = 64
	h := newHarnessWith(t, loader.Config{MapSizes: sizes, ClusterBits: identity.DefaultClusterBits, NodeAddr6: addr(self6)})
	out := datapath.PolicyKey{Direction: datapath.Egress}
	set := datapath.RuleSet{ID: 5, Entries: entries{out: {}}}
	h.rules(podA, set)
	const parts = 100
	number := func(i int) identity.Number { return identity.LocalBase + 1 + identity.Number(i) }
	denying := func(n int) datapath.RuleSet {
		rs := datapath.RuleSet{ID: 5, Entries: entries{out: {}}}
		for i := range n {
			k := out
			k.Identity = number(i)
			rs.Entries[k] = datapath.PolicyEntry{Deny: true}
		}
		return rs
	}
	send := func(i int) result {
		return h.fromPod(podA, h.sent(podA, segment(podA.ip, fmt.Sprintf("50.0.%d.7", i), 2000, 80, "S")))
	}
	passes := func(r result) {
		t.Helper()
		if r.act != actOK {
			t.Errorf("verdict %d, want it to pass", r.act)
		}
	}
	passes(send(parts + 1))
	h.tables.RuleSets.Set(5, denying(parts))
	for i := range parts {
		h.tables.IPCache.Set(key(fmt.Sprintf("50.0.%d.0/24", i)), datapath.IPEntry{Identity: number(i)})
	}
	h.told("rulesets", "policy", sizes.Policy)
	for i := range parts {
		h.dropped(send(i), maps.DropIdentityUnknown)
	}
	passes(send(parts + 2))
	h.tables.RuleSets.Set(5, denying(8))
	for i := 8; i < parts; i++ {
		h.tables.IPCache.Delete(key(fmt.Sprintf("50.0.%d.0/24", i)))
	}
	h.settled("rulesets")
	h.settled("ipcache")
	for i := range 8 {
		h.dropped(send(i), maps.DropPolicyDenied)
	}
	passes(send(9))
}
