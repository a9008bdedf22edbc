// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/objects"
)

type entries = map[datapath.PolicyKey]datapath.PolicyEntry

// newTestRuleSets writes into maps of its own with room for few entries.
func newTestRuleSets(t *testing.T, room uint32) *ruleSets {
	t.Helper()
	kernel := &objects.HawserMaps{Policy: testMap(t, "policy", room), RuleSets: testMap(t, "rule_sets", 64)}
	s, err := newRuleSets(kernel, datapath.NewTables().RuleSets)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *ruleSets) kernelHas(t *testing.T) map[maps.PolicyKey]maps.PolicyEntry {
	t.Helper()
	got, err := maps.Dump[maps.PolicyKey, maps.PolicyEntry](s.entries.m)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func port(p uint16) datapath.PolicyKey { return datapath.PolicyKey{Protocol: 6, Port: p} }

// An edit that failed on the way leaves nothing behind: the next one looks at all
// that the kernel has, not only at what its row changes.
func TestTornEditLeavesNothing(t *testing.T) {
	s := newTestRuleSets(t, 4)
	first := datapath.RuleSet{ID: 5, Ingress: true, Entries: entries{port(1): {}}}
	if err := s.write(nil, first); err != nil {
		t.Fatal(err)
	}
	tooMuch := datapath.RuleSet{ID: 5, Ingress: true, Entries: entries{port(1): {}}}
	for p := range uint16(10) {
		tooMuch.Entries[port(10+p)] = datapath.PolicyEntry{}
	}
	if err := s.write(&first, tooMuch); err == nil {
		t.Fatal("ten entries fit into a map for four")
	}
	if n := len(s.kernelHas(t)); n < 2 {
		t.Fatalf("%d entries: the edit did not begin", n)
	}
	if err := s.write(&first, first); err != nil {
		t.Fatal(err)
	}
	if got := s.kernelHas(t); len(got) != 2 { // and what counts for the default
		t.Errorf("left behind: %+v", got)
	}
}

// A full map is told with what to do; what it has stays, and there is room again
// when something goes.
func TestFullMapIsTold(t *testing.T) {
	s := newTestRuleSets(t, 3)
	lives := datapath.RuleSet{ID: 5, Entries: entries{port(1): {Origin: 1}, port(2): {Origin: 2}}}
	if err := s.write(nil, lives); err != nil {
		t.Fatal(err)
	}
	late := datapath.RuleSet{ID: 6, Entries: entries{port(3): {}, port(4): {}}}
	err := s.write(nil, late)
	for _, part := range []string{"the map policy is full, with 3 entries", "--map-sizes", "hawser map list"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%v does not say %q", err, part)
		}
	}
	got := s.kernelHas(t)
	for p := range lives.Entries {
		if _, ok := got[maps.EncodePolicyKey(5, p)]; !ok {
			t.Errorf("the entry of port %d was given up", p.Port)
		}
	}
	if word := s.words.have[6]; maps.RulesFrom(word).Valid {
		t.Error("a rule set that is not all there is enforced")
	}
	if err := errors.Join(s.remove(5), s.write(nil, late)); err != nil || len(s.kernelHas(t)) != 2 {
		t.Errorf("with room again: %v, %d entries", err, len(s.kernelHas(t)))
	}
}

// Differences lead to what writing everything leads to, and only they move the
// epoch; hits that the programs counted are kept.
func TestDifferencesOfARuleSet(t *testing.T) {
	s := newTestRuleSets(t, 64)
	was := datapath.RuleSet{ID: 5, Ingress: true, Entries: entries{port(1): {Origin: 1}, port(2): {Origin: 2}, port(3): {Origin: 3, Deny: true}}}
	if err := s.write(nil, was); err != nil {
		t.Fatal(err)
	}
	key := maps.EncodePolicyKey(5, port(1))
	if err := s.entries.m.Put(key, maps.PolicyEntry{Origin: 1, Hits: 7}); err != nil {
		t.Fatal(err)
	}
	epoch := s.epoch
	if err := s.write(&was, was); err != nil || s.epoch != epoch {
		t.Errorf("an equal row: error %v, epoch %d after %d", err, s.epoch, epoch)
	}
	now := datapath.RuleSet{ID: 5, Ingress: true, Entries: entries{port(1): {Origin: 1}, port(3): {Origin: 4}, port(4): {Origin: 5}}}
	if err := s.write(&was, now); err != nil || s.epoch != epoch+1 {
		t.Errorf("another row: error %v, epoch %d after %d", err, s.epoch, epoch)
	}
	got := s.kernelHas(t)
	want := map[maps.PolicyKey]maps.PolicyEntry{
		key: {Origin: 1, Hits: 7}, maps.EncodePolicyKey(5, port(3)): {Origin: 4}, maps.EncodePolicyKey(5, port(4)): {Origin: 5},
		maps.DefaultKey(5, datapath.Ingress): {Deny: 1},
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%+v: %+v, want %+v", k, got[k], v)
		}
	}
	if len(got) != len(want) {
		t.Errorf("entries %+v", got)
	}
	if err := s.repair(true); err != nil || s.epoch != epoch+1 || s.kernelHas(t)[key].Hits != 7 {
		t.Errorf("comparing with the kernel: error %v, epoch %d, %+v", err, s.epoch, s.kernelHas(t)[key])
	}
	// The other default: one counter comes, the other goes, and comes back from a
	// write that knows nothing of before.
	out := now
	out.Ingress, out.Egress = false, true
	for was, row := range map[*datapath.RuleSet]datapath.RuleSet{&now: out, nil: out} {
		err := s.write(was, row)
		got := s.kernelHas(t)
		_, in := got[maps.DefaultKey(5, datapath.Ingress)]
		if _, egress := got[maps.DefaultKey(5, datapath.Egress)]; err != nil || in || !egress {
			t.Errorf("the defaults' counters: ingress %v, egress %v, %v", in, egress, err)
		}
	}
}
