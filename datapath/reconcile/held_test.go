// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/objects"
	"github.com/hawser-mesh/hawser/identity"
)

// newcomers is a reconciler of rule sets, identities and the ipcache, with a rule
// set that allows all and denies some.
type newcomers struct {
	*Reconciler
	t       *testing.T
	tables  *datapath.Tables
	rules   *ruleSets
	ipcache *ipcache
	set     datapath.RuleSet
}

const (
	testWorkload = identity.Number(1<<16 + 7)
	testCIDR     = identity.LocalBase + 7
)

func newNewcomers(t *testing.T, policyRoom uint32) *newcomers {
	t.Helper()
	kernel := newMaps(t)
	kernel.Policy = testMap(t, "policy", policyRoom)
	kernel.Ipcache, kernel.IpcachePrefix = testMap(t, "ipcache", 64), testMap(t, "ipcache_prefix", 64)
	kernel.IpcacheEpochs, kernel.Identities = testMap(t, "ipcache_epochs", maps.IPEpochs+1), testMap(t, "identities", 64)
	n := &newcomers{t: t, tables: datapath.NewTables()}
	n.start(kernel)
	n.set = datapath.RuleSet{ID: testSet, Entries: entries{{Direction: datapath.Egress}: {}}}
	return n
}

func (n *newcomers) start(kernel *objects.HawserMaps) {
	n.t.Helper()
	rules, err := newRuleSets(kernel, n.tables.RuleSets)
	if err != nil {
		n.t.Fatal(err)
	}
	known, err := newIdentities(kernel, n.tables.Identities, rules.lagging)
	if err != nil {
		n.t.Fatal(err)
	}
	ips, err := newIPCache(kernel, n.tables.IPCache, &nodeIDs{}, netip.MustParseAddr("192.0.2.1"), rules.renewBlocks, known.vouch)
	if err != nil {
		n.t.Fatal(err)
	}
	n.rules, n.ipcache = rules, ips
	n.Reconciler = &Reconciler{
		log: slog.New(slog.DiscardHandler), known: known, tables: []syncer{rules, known, ips},
		changed: make(chan struct{}), status: map[string]*Status{},
	}
	for _, s := range n.Reconciler.tables {
		n.status[s.name()] = &Status{Table: s.name()}
		s.subscribe()
		n.t.Cleanup(s.close)
	}
}

// deny has the rule set deny an identity, with an address that has it; rules first,
// as the agent publishes.
func (n *newcomers) deny(id identity.Number, p string) {
	n.set.Entries = clone(n.set.Entries)
	n.set.Entries[datapath.PolicyKey{Direction: datapath.Egress, Identity: id}] = datapath.PolicyEntry{Deny: true}
	n.tables.RuleSets.Set(testSet, n.set)
	if !id.IsLocal() {
		n.tables.Identities.Set(id, datapath.Identity{Number: id, ClusterID: 1})
	}
	n.tables.IPCache.Set(datapath.IPKey{Prefix: netip.MustParsePrefix(p)}, datapath.IPEntry{Identity: id})
}

func clone(e entries) entries {
	out := entries{}
	for k, v := range e {
		out[k] = v
	}
	return out
}

// passes reports whether the kernel lets the rule set's endpoints send to an
// address: policy_ask with what the ipcache says.
func (n *newcomers) passes(a string) bool {
	who := n.ipcache.kernelSays(netip.MustParseAddr(a))
	if _, known := n.known.known.have[uint32(who)]; who == 0 || !known && who > identity.MaxReserved && !who.IsLocal() {
		return false
	}
	return n.rules.snapshot().allows(question{dir: datapath.Egress, peer: who, proto: 6, port: 80})
}

// fill uses up the room for rules, with a rule set of its own.
func (n *newcomers) fill(entries int) {
	full := datapath.RuleSet{ID: testSet + 1, Entries: map[datapath.PolicyKey]datapath.PolicyEntry{}}
	for p := range entries {
		full.Entries[port(uint16(p+1))] = datapath.PolicyEntry{}
	}
	n.tables.RuleSets.Set(full.ID, full)
}

// While there is no room for what denies them, newcomers are unknown and dropped;
// who was known stays, and when there is room all is as it should be.
func TestNewcomersWaitForTheirDenies(t *testing.T) {
	n := newNewcomers(t, 24)
	n.deny(identity.LocalBase+1, "10.0.0.0/8")
	n.tables.IPCache.Set(datapath.IPKey{Prefix: netip.MustParsePrefix("10.9.0.0/16")}, datapath.IPEntry{Identity: identity.LocalBase + 9})
	n.pass()
	used := len(n.rules.entries.have)
	n.fill(24 - used)
	if !n.pass() {
		t.Fatalf("%+v", n.Status())
	}
	if n.passes("10.1.2.3") || !n.passes("10.9.0.1") || !n.passes("192.0.2.77") {
		t.Fatal("the rule set does not what it says")
	}

	n.deny(testCIDR, "10.1.0.0/16")
	n.deny(testWorkload, "10.2.0.7/32")
	n.tables.IPCache.Set(datapath.IPKey{Prefix: netip.MustParsePrefix("10.9.7.0/24")}, datapath.IPEntry{Identity: identity.LocalBase + 9})
	for range 2 {
		if n.pass() {
			t.Fatal("there was room")
		}
		for a, want := range map[string]bool{"10.1.2.3": false, "10.2.0.7": false, "10.3.0.1": false, "10.9.0.1": true, "10.9.7.1": true, "192.0.2.77": true} {
			if n.passes(a) != want {
				t.Errorf("no room: %s passes %v, want %v", a, !want, want)
			}
		}
		if _, ok := n.known.known.have[uint32(testWorkload)]; ok {
			t.Error("the workload is known before its deny is there")
		}
	}
	for _, s := range n.Status()[1:] {
		if s.LastError == "" || s.Reconciled == s.Revision {
			t.Errorf("%+v: it is not told", s)
		}
	}
	n.fill(2)
	if !n.pass() {
		n.pass() // room was made after it was looked for
	}
	for _, s := range n.Status() {
		if s.LastError != "" || s.Reconciled != s.Revision {
			t.Errorf("%+v", s)
		}
	}
	if _, ok := n.known.known.have[uint32(testWorkload)]; !ok || n.ipcache.kernelSays(netip.MustParseAddr("10.1.2.3")) != testCIDR || n.passes("10.1.2.3") || n.passes("10.2.0.7") {
		t.Error("with room again: the newcomers are not known, or pass")
	}
}

// whenTaken calls a function after a table is taken.
type whenTaken struct {
	syncer
	then func()
}

func (s whenTaken) take() { s.syncer.take(); s.then() }

// Whatever is published while a pass is under way, in the order in which the agent
// does: nobody is known before what denies him is there.
func TestPublishedDuringAPass(t *testing.T) {
	for _, of := range []string{"taking", "rule sets", "identities", "ipcache"} {
		t.Run(of, func(t *testing.T) {
			n := newNewcomers(t, 64)
			n.deny(identity.LocalBase+1, "10.0.0.0/8")
			n.deny(testWorkload+1, "10.2.0.8/32")
			n.pass()
			done := false
			check := func() {
				if !done {
					done = true
					n.deny(testCIDR, "10.1.0.0/16")
					n.deny(testWorkload, "10.2.0.7/32")
					n.deny(testCIDR+1, "10.2.0.8/32")
				}
				for _, a := range []string{"10.1.2.3", "10.2.0.7", "10.2.0.8"} {
					if n.passes(a) {
						t.Errorf("%s passes", a)
					}
				}
			}
			all := map[string]*func(){"rule sets": &n.rules.words.wrote, "identities": &n.known.known.wrote, "ipcache": &n.ipcache.hosts.wrote}
			if of == "taking" {
				n.Reconciler.tables[1] = whenTaken{n.known, check}
			} else {
				*all[of] = check
			}
			n.deny(testWorkload+2, "10.2.0.9/32") // a write in each table
			n.pass()
			for _, f := range all {
				*f = check
			}
			n.pass()
			if !done || n.ipcache.kernelSays(netip.MustParseAddr("10.1.2.3")) != testCIDR {
				t.Error("what was published is not there")
			}
			// The other way: the identity is unknown before its entries go.
			for _, f := range all {
				*f = nil
			}
			n.tables.Identities.Delete(testWorkload)
			n.set.Entries = entries{{Direction: datapath.Egress}: {}}
			n.tables.RuleSets.Set(testSet, n.set)
			n.rules.entries.wrote = func() {
				if n.passes("10.2.0.7") {
					t.Error("10.2.0.7 passes while it goes")
				}
			}
			n.pass()
		})
	}
}

// An edit for which there is no room lets nothing pass that is denied before and
// afterwards; if nobody is to wait for it, nothing either that is denied afterwards.
func TestEditWithoutRoom(t *testing.T) {
	s := newTestRuleSets(t, 6)
	r := rand.New(rand.NewPCG(5, 6))
	refused, waits, goes := 0, 0, 0
	is := datapath.RuleSet{ID: testSet}
	for round := range 3000 {
		before, row := s.snapshot(), randomRules(r)
		was := &is
		if round%5 == 0 {
			was = nil
		}
		after, between := wanted(row), []snapshot{}
		s.entries.wrote = func() { between = append(between, s.snapshot()) }
		s.words.wrote = s.entries.wrote
		err := s.write(was, row)
		for i, state := range between {
			for _, q := range questions() {
				if state.allows(q) && !before.allows(q) && !after.allows(q) {
					t.Fatalf("round %d, write %d: %+v passes, which it does neither before nor afterwards", round, i+1, q)
				}
			}
		}
		if err == nil {
			is = row
			continue
		}
		refused++
		state := s.snapshot()
		for _, q := range questions() {
			switch passes := state.allows(q) && !after.allows(q); {
			case passes && !before.allows(q):
				t.Fatalf("round %d: %+v passes, which it does neither before nor afterwards", round, q)
			case passes && !s.lagging():
				t.Fatalf("round %d: %+v passes and must not, and nobody waits for it", round, q)
			}
		}
		if s.lagging() {
			waits++
		} else {
			goes++
		}
	}
	if refused == 0 || waits == 0 || goes == 0 {
		t.Errorf("%d edits refused, %d to wait for, %d not", refused, waits, goes)
	}
}

// wanted is what the kernel should have of a row.
func wanted(row datapath.RuleSet) snapshot {
	rules := maps.Rules{Valid: true, DenyIngress: row.Ingress, DenyEgress: row.Egress, Audit: row.Audit}
	s := snapshot{entries: map[maps.PolicyKey]maps.PolicyEntry{}}
	for k, v := range row.Entries {
		key := maps.EncodePolicyKey(testSet, k)
		rules.AddLevel(key)
		s.entries[key] = maps.EncodePolicyEntry(v)
	}
	s.word = rules.Word()
	return s
}
