// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"fmt"
	gomaps "maps"
	"math/rand/v2"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/objects"
	"github.com/hawser-mesh/hawser/identity"
)

// question is a packet as policy sees it.
type question struct {
	dir         datapath.Direction
	peer, block identity.Number
	proto       uint8
	port        uint16
}

func questions() (all []question) {
	for _, dir := range []datapath.Direction{datapath.Ingress, datapath.Egress} {
		for _, peer := range []identity.Number{10, 11} {
			for _, block := range []identity.Number{0, identity.BlockBase} {
				for _, proto := range []uint8{6, 17} {
					for _, port := range []uint16{80, 82} {
						all = append(all, question{dir, peer, block, proto, port})
					}
				}
			}
		}
	}
	return all
}

// snapshot is what the kernel has of one rule set.
type snapshot struct {
	word    uint64
	entries map[maps.PolicyKey]maps.PolicyEntry
}

// row is policy_row of bpf/lib/policy.h.
func (s snapshot) row(q question, levels, sizes uint8, n identity.Number) (deny, hit bool) {
	key := func(proto uint8, port uint16, wild uint8) maps.PolicyKey {
		return maps.EncodePolicyKey(testSet, datapath.PolicyKey{Direction: q.dir, Identity: n, Protocol: proto, Port: port, PortWild: wild})
	}
	var keys []maps.PolicyKey
	if levels&1 != 0 {
		keys = append(keys, key(q.proto, q.port, 0))
	}
	for i := range uint8(7) {
		if wild := 2*i + 2; sizes>>i&1 != 0 {
			keys = append(keys, key(q.proto, q.port>>wild<<wild, wild))
		}
	}
	if levels&2 != 0 {
		keys = append(keys, key(q.proto, 0, 0))
	}
	if levels&4 != 0 {
		keys = append(keys, key(0, 0, 0))
	}
	for _, k := range keys {
		if e, ok := s.entries[k]; ok {
			return e.Deny != 0, true
		}
	}
	return false, false
}

// allows is policy_first of bpf/lib/policy.h.
func (s snapshot) allows(q question) bool {
	r := maps.RulesFrom(s.word)
	levels, deny, blocks := r.IngressLevels, r.DenyIngress, r.IngressBlocks
	if q.dir == datapath.Egress {
		levels, deny, blocks = r.EgressLevels, r.DenyEgress, r.EgressBlocks
	}
	if !r.Valid || r.Audit {
		return r.Valid
	}
	first, hit := s.row(q, levels, r.Ranges, q.peer)
	if !hit {
		first, hit = s.row(q, levels>>3, r.Ranges, 0)
	}
	if blocks && q.block != 0 && (!hit || !first) {
		if second, ok := s.row(q, levels, r.Ranges, q.block); ok && (!hit || second) {
			first, hit = second, true
		}
	}
	if hit {
		return !first
	}
	return !deny
}

const testSet = 5

func (s *ruleSets) snapshot() snapshot {
	return snapshot{s.words.have[testSet], gomaps.Clone(s.entries.have)}
}

// randomRules are few enough to meet the same keys again. Entries for ipBlocks
// only allow, as those of NetworkPolicies do.
func randomRules(r *rand.Rand) datapath.RuleSet {
	rs := datapath.RuleSet{ID: testSet, Ingress: r.IntN(3) > 0, Egress: r.IntN(3) > 0, Audit: r.IntN(12) == 0, Entries: entries{}}
	for range r.IntN(9) {
		k := datapath.PolicyKey{
			Direction: datapath.Direction(r.IntN(2)), Identity: []identity.Number{0, 10, 11, identity.BlockBase}[r.IntN(4)],
			Protocol: []uint8{0, 6, 17}[r.IntN(3)],
		}
		if k.Protocol != 0 {
			k.Port = []uint16{0, 80, 82}[r.IntN(3)]
			if r.IntN(4) == 0 {
				k.Port, k.PortWild = 80, 2
			}
		}
		rs.Entries[k] = datapath.PolicyEntry{Deny: !k.Identity.IsBlock() && r.IntN(2) == 0, Origin: r.Uint32N(3)}
	}
	return rs
}

// withoutAllows is a rule set of which one direction has become too large: what
// single identities are allowed is left out, or everything.
func withoutAllows(rs datapath.RuleSet, all bool) datapath.RuleSet {
	rs.Ingress, rs.Entries = true, gomaps.Clone(rs.Entries)
	gomaps.DeleteFunc(rs.Entries, func(k datapath.PolicyKey, e datapath.PolicyEntry) bool {
		return k.Direction == datapath.Ingress && (all || k.Identity != 0 && !e.Deny)
	})
	return rs
}

// newMaps are maps for rule sets.
func newMaps(t *testing.T) *objects.HawserMaps {
	s := newTestRuleSets(t, 256)
	return &objects.HawserMaps{Policy: s.entries.m, RuleSets: s.words.m}
}

// watched runs an edit and asks all after each of its writes: what passes has
// to pass before or afterwards.
func (s *ruleSets) watched(t *testing.T, what string, edit func() error) (states int) {
	t.Helper()
	before := s.snapshot()
	between := []snapshot{}
	s.entries.wrote = func() { between = append(between, s.snapshot()) }
	s.words.wrote = s.entries.wrote
	if err := edit(); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	s.entries.wrote, s.words.wrote = nil, nil
	after := s.snapshot()
	for i, state := range between {
		for _, q := range questions() {
			if state.allows(q) && !before.allows(q) && !after.allows(q) {
				t.Fatalf("%s: after write %d of %d, %+v passes, which it does neither before nor afterwards\nbefore %x %+v\nthen   %x %+v\nafter  %x %+v",
					what, i+1, len(between), q, before.word, before.entries, state.word, state.entries, after.word, after.entries)
			}
		}
	}
	return len(between)
}

// No state between two rule sets lets pass what both deny: not in an edit by
// differences, nor in one of an agent that has just started, nor when a rule set
// goes, nor when the kernel's is put right.
func TestNoStateBetweenIsWeaker(t *testing.T) {
	kernel, elsewhere := newMaps(t), newTestRuleSets(t, 256)
	r := rand.New(rand.NewPCG(1, 2))
	states := 0
	for round := range 2000 {
		s, err := newRuleSets(kernel, datapath.NewTables().RuleSets)
		if err != nil {
			t.Fatal(err)
		}
		a, b := randomRules(r), randomRules(r)
		if round%4 == 3 { // b has room for what a has not, or is what a has room for
			if b = withoutAllows(a, r.IntN(2) == 0); r.IntN(2) == 0 {
				a, b = b, a
			}
		}
		name := func(what string) string { return fmt.Sprintf("round %d, %s", round, what) }
		states += s.watched(t, name("a start"), func() error { return s.write(nil, a) })
		states += s.watched(t, name("an edit"), func() error { return s.write(&a, b) })
		s.become(t, elsewhere, a)
		if err := s.entries.refresh(); err != nil {
			t.Fatal(err)
		}
		if err := s.words.refresh(); err != nil {
			t.Fatal(err)
		}
		states += s.watched(t, name("a repair"), func() error { return s.repair(true) })
		switch round % 3 {
		case 0:
			states += s.watched(t, name("a removal"), func() error { return s.remove(testSet) })
		case 1: // an agent starts and nobody wants it any more
			if s, err = newRuleSets(kernel, datapath.NewTables().RuleSets); err != nil {
				t.Fatal(err)
			}
			states += s.watched(t, name("a prune"), func() error { return s.repair(true) })
		}
	}
	t.Logf("%d states between", states)
}

// become puts another rule set into the kernel behind the back of s.
func (s *ruleSets) become(t *testing.T, other *ruleSets, rs datapath.RuleSet) {
	t.Helper()
	if err := other.write(nil, rs); err != nil {
		t.Fatal(err)
	}
	for k := range s.entries.have {
		if err := s.entries.m.Delete(k); err != nil {
			t.Fatal(err)
		}
	}
	for k, v := range other.entries.have {
		if err := s.entries.m.Update(k, v, ebpf.UpdateAny); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.words.m.Put(uint32(testSet), other.words.have[testSet]); err != nil {
		t.Fatal(err)
	}
}
