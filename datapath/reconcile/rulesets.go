// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"fmt"
	"slices"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/objects"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/internal/table"
)

// ruleSets writes policy. An edit goes in an order in which no state between is
// weaker than both ends: probes for new kinds of entries are switched on, new
// denies, new allows, deletions; last, in one word, the new defaults and the new
// epoch, which makes every flow of the rule set be judged again.
type ruleSets struct {
	feed[uint32, datapath.RuleSet]
	entries *mirror[maps.PolicyKey, maps.PolicyEntry]
	words   *slots[uint64]
	bySet   map[uint32]map[maps.PolicyKey]struct{} // what the kernel has
	torn    map[uint32]struct{}                    // sets of which an edit failed on the way
	epoch   uint32                                 // the last one given; never reused
	max     uint32
}

func newRuleSets(kernel *objects.HawserMaps, t *table.Table[uint32, datapath.RuleSet]) (*ruleSets, error) {
	entries, err1 := newCountedMirror[maps.PolicyKey]("policy", kernel.Policy, func(v *maps.PolicyEntry) { v.Hits = 0 })
	words, err2 := newSlots[uint64]("rule_sets", kernel.RuleSets)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	s := &ruleSets{
		feed: newFeed(t), entries: entries, words: words,
		bySet: map[uint32]map[maps.PolicyKey]struct{}{}, torn: map[uint32]struct{}{}, max: kernel.RuleSets.MaxEntries(),
	}
	for _, w := range words.have {
		s.epoch = max(s.epoch, maps.RulesFrom(w).Epoch)
	}
	for k := range entries.have {
		s.note(k)
	}
	return s, nil
}

func (s *ruleSets) note(k maps.PolicyKey) {
	if s.bySet[k.RuleSet] == nil {
		s.bySet[k.RuleSet] = map[maps.PolicyKey]struct{}{}
	}
	s.bySet[k.RuleSet][k] = struct{}{}
}

// builtin is the content of the rule sets with fixed meaning, for tables that
// do not spell them out.
func builtin(id uint32) (datapath.RuleSet, bool) {
	switch id {
	case datapath.OpenRuleSet:
		return datapath.RuleSet{ID: id}, true
	case datapath.InitRuleSet:
		return datapath.RuleSet{
			ID: id, Ingress: true, Egress: true,
			Entries: map[datapath.PolicyKey]datapath.PolicyEntry{
				{Direction: datapath.Egress, Identity: identity.Host}: {},
			},
		}, true
	}
	return datapath.RuleSet{}, false
}

func (s *ruleSets) sync() (uint64, error) {
	var errs []error
	for id := range datapath.FirstRuleSet {
		row, _ := builtin(id)
		if _, ok := s.table.Get(id); !ok {
			errs = append(errs, s.write(nil, row))
		}
	}
	revision, err := s.each(func(id uint32, old *datapath.RuleSet, row datapath.RuleSet) error {
		row.ID = id
		return s.write(old, row)
	}, func(id uint32, _ datapath.RuleSet) error {
		if row, ok := builtin(id); ok {
			return s.write(nil, row)
		}
		return s.remove(id)
	})
	return revision, errors.Join(append(errs, err)...)
}

// write makes the kernel's rule set equal to the row. was is the row as it was
// last written, of which only the differences are; nil: the kernel may have
// anything.
func (s *ruleSets) write(was *datapath.RuleSet, row datapath.RuleSet) error {
	if row.ID >= s.max {
		return fmt.Errorf("write rule set %d: the rule_sets map has only %d places", row.ID, s.max)
	}
	if _, torn := s.torn[row.ID]; torn {
		was = nil
	}
	s.torn[row.ID] = struct{}{}
	var edit edit
	rules := maps.Rules{Valid: true, DenyIngress: row.Ingress, DenyEgress: row.Egress, Audit: row.Audit}
	for k, v := range row.Entries {
		key := maps.EncodePolicyKey(row.ID, k)
		rules.AddLevel(key)
		if was != nil {
			if e, ok := was.Entries[k]; ok && e == v {
				continue
			}
		}
		edit.put(key, v)
	}
	counters := edit.defaults(was, row)
	if was == nil {
		for k := range s.bySet[row.ID] {
			if _, ok := row.Entries[k.Row()]; !ok && !slices.Contains(counters, k) {
				edit.gone = append(edit.gone, k)
			}
		}
	} else {
		for k := range was.Entries {
			if _, ok := row.Entries[k]; !ok {
				edit.gone = append(edit.gone, maps.EncodePolicyKey(row.ID, k))
			}
		}
	}
	old := maps.RulesFrom(s.words.have[row.ID])
	if err := s.widen(row.ID, old, rules); err != nil {
		return err
	}
	changed, err := s.writeEntries(row.ID, edit)
	if err != nil {
		return err
	}
	delete(s.torn, row.ID)
	rules.Epoch = old.Epoch
	if !changed && rules == old {
		s.words.want[row.ID] = rules.Word()
		return nil
	}
	s.epoch++
	rules.Epoch = s.epoch
	_, err = s.words.set(row.ID, rules.Word())
	return err
}

// widen makes the programs probe for new kinds of entries before there are any.
func (s *ruleSets) widen(id uint32, old, rules maps.Rules) error {
	wide := old
	wide.Widen(rules)
	if !old.Valid || wide == old {
		return nil
	}
	_, err := s.words.set(id, wide.Word())
	return err
}

// edit is what is to be written of a rule set's entries.
type edit struct {
	denies, allows []put
	gone           []maps.PolicyKey
}

type put struct {
	key   maps.PolicyKey
	entry maps.PolicyEntry
}

func (e *edit) put(k maps.PolicyKey, v datapath.PolicyEntry) {
	p := put{k, maps.EncodePolicyEntry(v)}
	if v.Deny {
		e.denies = append(e.denies, p)
	} else {
		e.allows = append(e.allows, p)
	}
}

// defaults adds the entries that count what a row's defaults deny, and returns
// their keys.
func (e *edit) defaults(was *datapath.RuleSet, row datapath.RuleSet) (keys []maps.PolicyKey) {
	for dir, on := range map[datapath.Direction][2]bool{
		datapath.Ingress: {was != nil && was.Ingress, row.Ingress},
		datapath.Egress:  {was != nil && was.Egress, row.Egress},
	} {
		key := maps.DefaultKey(row.ID, dir)
		switch {
		case on[1] && !on[0]:
			e.put(key, datapath.PolicyEntry{Deny: true})
		case on[0] && !on[1]:
			e.gone = append(e.gone, key)
		}
		if on[1] {
			keys = append(keys, key)
		}
	}
	return keys
}

func (s *ruleSets) writeEntries(id uint32, e edit) (bool, error) {
	changed := false
	for _, puts := range [][]put{e.denies, e.allows} {
		for _, p := range puts {
			ok, err := s.entries.set(p.key, p.entry)
			if err != nil {
				return changed, err
			}
			s.note(p.key)
			changed = changed || ok
		}
	}
	for _, k := range e.gone {
		ok, err := s.entries.del(k)
		if err != nil {
			return changed, err
		}
		delete(s.bySet[id], k)
		changed = changed || ok
	}
	return changed, nil
}

// renewBlocks has the flows judged again of all rule sets that ask which ipBlocks
// an address is in: that has changed.
func (s *ruleSets) renewBlocks() error {
	for id, w := range s.words.have {
		rules := maps.RulesFrom(w)
		if !rules.IngressBlocks && !rules.EgressBlocks {
			continue
		}
		s.epoch++
		rules.Epoch = s.epoch
		if _, err := s.words.set(id, rules.Word()); err != nil {
			return err
		}
	}
	return nil
}

// remove makes a rule set invalid first: endpoints that still name it are
// dropped, not opened.
func (s *ruleSets) remove(id uint32) error {
	if _, err := s.words.del(id); err != nil {
		return err
	}
	var all edit
	for k := range s.bySet[id] {
		all.gone = append(all.gone, k)
	}
	_, err := s.writeEntries(id, all)
	delete(s.bySet, id)
	return err
}

// repair writes what differs from the kernel; a repaired rule set gets a new
// epoch.
func (s *ruleSets) repair(prune bool) error {
	changed := map[uint32]struct{}{}
	err := s.entries.repair(prune, func(k maps.PolicyKey) { changed[k.RuleSet] = struct{}{} })
	clear(s.bySet)
	for k := range s.entries.have {
		s.note(k)
	}
	err = errors.Join(err, s.words.repair(prune))
	for id := range changed {
		rules := maps.RulesFrom(s.words.have[id])
		if !rules.Valid {
			continue
		}
		s.epoch++
		rules.Epoch = s.epoch
		_, e := s.words.set(id, rules.Word())
		err = errors.Join(err, e)
	}
	return err
}
