// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"cmp"
	"errors"
	"fmt"
	gomaps "maps"
	"slices"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/objects"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/internal/table"
)

// ruleSets writes policy. An edit goes in an order in which no state between lets
// pass what both ends deny: probes for new kinds of entries are switched on; new
// denies, then new allows; the new defaults; what is gone, allows before denies;
// last, in one word, the probes that are left and the new epoch, which makes every
// flow of the rule set be judged again. That holds because every allow stands
// beside all denies of its own end, and because entries for ipBlocks, which are
// asked beside the others, only allow. A rule set without a word is invalid, and
// drops: it comes last with a new one and goes first with an old one.
type ruleSets struct {
	feed[uint32, datapath.RuleSet]
	entries *mirror[maps.PolicyKey, maps.PolicyEntry]
	words   *slots[uint64]
	bySet   map[uint32]map[maps.PolicyKey]struct{} // what the kernel has
	torn    map[uint32]struct{}                    // sets of which an edit failed on the way
	scant   map[uint32]struct{}                    // sets of which only allows are missing
	lax     map[uint32]struct{}                    // sets that may allow what their rows do not
	epoch   uint32                                 // the last one given; never reused
	max     uint32
}

func newRuleSets(kernel *objects.HawserMaps, t *table.Table[uint32, datapath.RuleSet]) (*ruleSets, error) {
	entries, err1 := newCountedMirror[maps.PolicyKey]("policy", kernel.Policy, func(v *maps.PolicyEntry) { v.Hits = 0 })
	words, err2 := newSlots[uint64]("rule_sets", kernel.RuleSets)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	entries.order = func(_ maps.PolicyKey, v1 maps.PolicyEntry, _ maps.PolicyKey, v2 maps.PolicyEntry) int {
		return cmp.Compare(v2.Deny, v1.Deny) // and deletions in the reverse order
	}
	s := &ruleSets{
		feed: newFeed(t), entries: entries, words: words,
		bySet: map[uint32]map[maps.PolicyKey]struct{}{}, torn: map[uint32]struct{}{}, scant: map[uint32]struct{}{}, lax: map[uint32]struct{}{}, max: kernel.RuleSets.MaxEntries(),
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
	_, torn := s.torn[row.ID]
	_, scant := s.scant[row.ID]
	if torn || scant {
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
	if old.Valid {
		s.lax[row.ID] = struct{}{}
	}
	changed, missing, err := s.carryOut(row.ID, edit, old, rules)
	if err != nil {
		return err
	}
	if missing != nil && !old.Valid {
		return missing
	}
	rules.Epoch = old.Epoch
	if !changed && !torn && rules == old {
		s.words.want[row.ID] = rules.Word()
	} else {
		s.epoch++
		rules.Epoch = s.epoch
		if _, err := s.words.set(row.ID, rules.Word()); err != nil {
			return err
		}
	}
	delete(s.torn, row.ID)
	delete(s.lax, row.ID)
	if delete(s.scant, row.ID); missing != nil {
		s.scant[row.ID] = struct{}{}
	}
	return missing
}

// lagging reports whether the kernel lacks anything of a rule set but allows.
func (s *ruleSets) lagging() bool { return len(s.lax) > 0 }

// carryOut does all of an edit but its last step. Allows for which there is no room
// are missing; what is gone goes without them.
func (s *ruleSets) carryOut(id uint32, e edit, old, rules maps.Rules) (changed bool, missing, err error) {
	if err := s.between(id, old, old, rules); err != nil {
		return false, nil, err
	}
	if changed, err = s.putEntries(e.denies); err != nil {
		if err = s.makeRoom(id, e, old, rules); err == nil {
			_, err = s.putEntries(e.denies)
		}
		if changed = true; err != nil {
			return changed, nil, err
		}
	}
	more, missing := s.putEntries(e.allows)
	changed = changed || more
	if len(e.gone) == 0 {
		return changed, missing, nil
	}
	if err := s.between(id, old, rules, old); err != nil {
		return changed, missing, err
	}
	gone, err := s.deleteEntries(id, e.gone)
	if err == nil && missing != nil { // there may be room now
		more, missing = s.putEntries(e.allows)
	}
	return changed || gone || more, missing, err
}

// between gives a rule set the defaults of rules and the probes of both, and lets
// it keep its epoch. One that is invalid stays so.
func (s *ruleSets) between(id uint32, old, rules, other maps.Rules) error {
	if !old.Valid {
		return nil
	}
	rules.Widen(other)
	rules.Epoch = old.Epoch
	_, err := s.words.set(id, rules.Word())
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
			e.allows = append(e.allows, put{key, maps.EncodePolicyEntry(datapath.PolicyEntry{Deny: true})}) // denies nothing itself
		case on[0] && !on[1]:
			e.gone = append(e.gone, key)
		}
		if on[1] {
			keys = append(keys, key)
		}
	}
	return keys
}

// makeRoom deletes of what is gone all that may go before the new denies are there:
// allows, and the denies of those for whom no new deny is missing. The defaults are
// the stricter of both.
func (s *ruleSets) makeRoom(id uint32, e edit, old, rules maps.Rules) error {
	rules.DenyIngress = rules.DenyIngress || old.DenyIngress
	rules.DenyEgress = rules.DenyEgress || old.DenyEgress
	rules.Audit = rules.Audit && old.Audit
	if err := s.between(id, old, rules, old); err != nil {
		return err
	}
	missing := map[uint32]bool{}
	for _, p := range e.denies {
		if have, ok := s.entries.have[p.key]; !ok || have != p.entry {
			missing[p.key.Identity] = true
		}
	}
	keep := func(k maps.PolicyKey) bool {
		return old.Valid && s.entries.have[k].Deny != 0 && (k.Identity == 0 || missing[0] || missing[k.Identity])
	}
	_, err := s.deleteEntries(id, slices.DeleteFunc(slices.Clone(e.gone), keep))
	return err
}

func (s *ruleSets) putEntries(puts []put) (changed bool, err error) {
	for _, p := range puts {
		ok, err := s.entries.set(p.key, p.entry)
		if err != nil {
			return changed, err
		}
		s.note(p.key)
		changed = changed || ok
	}
	return changed, nil
}

// deleteEntries deletes allows before denies.
func (s *ruleSets) deleteEntries(id uint32, gone []maps.PolicyKey) (changed bool, err error) {
	slices.SortFunc(gone, func(a, b maps.PolicyKey) int {
		return cmp.Compare(s.entries.have[a].Deny, s.entries.have[b].Deny)
	})
	for _, k := range gone {
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
	_, err := s.deleteEntries(id, slices.Collect(gomaps.Keys(s.bySet[id])))
	if err == nil {
		delete(s.bySet, id)
		delete(s.torn, id)
		delete(s.scant, id)
		delete(s.lax, id)
	}
	return err
}

// repair writes what differs from the kernel, in the order of an edit; a repaired
// rule set gets a new epoch.
func (s *ruleSets) repair(prune bool) error {
	if err := errors.Join(s.entries.refresh(), s.words.refresh()); err != nil {
		return err
	}
	changed := map[uint32]struct{}{}
	note := func(k maps.PolicyKey) { changed[k.RuleSet] = struct{}{} }
	wanted, old := gomaps.Clone(s.words.want), gomaps.Clone(s.words.have)
	errs := []error{s.eachWord(wanted, old, prune, false), s.entries.rewrite(note)}
	if errors.Join(errs...) != nil { // what is not whole keeps its defaults
		for id := range changed {
			errs = append(errs, s.finish(id, s.words.have[id], old[id], true))
		}
		gomaps.Copy(s.words.want, wanted)
		return errors.Join(errs...)
	}
	if prune {
		errs = append(errs, s.eachWord(wanted, old, true, true), s.entries.prune(note))
	}
	clear(s.bySet)
	for k := range s.entries.have {
		s.note(k)
	}
	for id, w := range wanted {
		_, moved := changed[id]
		errs = append(errs, s.finish(id, w, old[id], moved))
	}
	return errors.Join(errs...)
}

// eachWord has all rule sets of the kernel probe for what they have and for what
// they are to have, and gives them their new defaults if that is set. Those that
// nobody wants become invalid if prune is set.
func (s *ruleSets) eachWord(wanted, old map[uint32]uint64, prune, defaults bool) error {
	var errs []error
	for id, w := range old {
		now, ok := wanted[id]
		is, to := maps.RulesFrom(w), maps.RulesFrom(now)
		var err error
		switch {
		case ok && defaults:
			err = s.between(id, is, to, is)
		case ok:
			err = s.between(id, is, is, to)
		case prune:
			_, err = s.words.del(id)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// finish gives a rule set its word, with a new epoch if its entries have changed
// or the kernel had another word.
func (s *ruleSets) finish(id uint32, w, old uint64, changed bool) error {
	rules := maps.RulesFrom(w)
	if rules.Valid && (changed || w != old) {
		s.epoch++
		rules.Epoch = s.epoch
	}
	_, err := s.words.set(id, rules.Word())
	return err
}
