// SPDX-License-Identifier: Apache-2.0

// Package policy resolves policy objects into rule sets: what the kernel looks
// up for each packet of an endpoint.
//
// The Engine holds all identities, all objects and the label sets of the
// endpoints on this node. A change of any of them touches only the entries it
// affects. Start with Engine; selectors.go says which identities a selector
// means, prefixes.go which identities prefixes have, nets.go what prefixes as peers
// select, ruleset.go how the parts of
// rules become entries, verdict.go how deny beats allow although the kernel stops
// at the first hit.
//
// Parsing is policy/api's; storing and publishing objects is the API server's;
// the kernel's copy is datapath/reconcile's.
package policy

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/internal/table"
	"github.com/hawser-mesh/hawser/policy/api"
)

// Scope is what a peer selector means that names no cluster.
type Scope string

// Scopes.
const (
	ScopeLocal Scope = "local" // the own cluster: the safe choice, and the default
	ScopeMesh  Scope = "mesh"  // every cluster
)

// Mode is which endpoints have their policies enforced.
type Mode string

// Modes.
const (
	ModeDefault Mode = "default" // in the directions in which a policy selects them
	ModeAlways  Mode = "always"  // all, in both directions
	ModeNever   Mode = "never"   // none
)

// Config of an Engine.
type Config struct {
	Cluster string // own name
	Scope   Scope  // empty is ScopeLocal
	Mode    Mode   // empty is ModeDefault
	// Audit has every rule set audited: what it denies is reported and passes.
	Audit bool
	// RuleSetIDs are numbers given before a restart, by Subject.Name; see
	// Engine.RuleSetIDs. They stay reserved for their labels until
	// Engine.DropUnclaimed.
	RuleSetIDs map[string]uint32
	// MaxEntries is how many entries a rule set may have; 0: any number. Of one that
	// would have more, what is allowed is left out, which Excesses tells.
	MaxEntries int
}

// Engine resolves policy. It is safe for concurrent use; no method blocks on
// anything but its mutex.
type Engine struct {
	cluster string
	scope   Scope
	mode    Mode
	audit   bool

	maxEntries int // of a rule set; 0: no limit

	mu         sync.Mutex
	identities map[identity.Number]*ident
	byLabel    map[term]map[*ident]struct{}
	selectors  map[string]*selector // by api.Selector.ID, scoped
	selIndex   termIndex[*selector]
	objects    map[string]*object // by api.Object.ID
	ruleIndex  termIndex[*rule]
	ruleSets   map[string]*ruleSet // by Subject.key
	byID       map[uint32]*ruleSet
	unclaimed  map[string]uint32 // Subject.Name → recovered number
	reserved   map[uint32]struct{}
	origins    *origins
	prefixes   *prefixes
	services   *services
	names      *names
	apiServers []netip.Prefix // sorted
	dirty      map[*ruleSet]struct{}
	unused     []*selector // since the last sweep
	gone       []uint32
}

// New makes an Engine that knows the reserved identities and no policy.
func New(cfg Config) (*Engine, error) {
	if cfg.Cluster == "" {
		return nil, errors.New("policy engine: own cluster's name is required")
	}
	if cfg.Scope == "" {
		cfg.Scope = ScopeLocal
	}
	if cfg.Scope != ScopeLocal && cfg.Scope != ScopeMesh {
		return nil, fmt.Errorf("policy engine: scope %q: want %s or %s", cfg.Scope, ScopeLocal, ScopeMesh)
	}
	switch cfg.Mode {
	case "", ModeDefault, ModeAlways, ModeNever:
	default:
		return nil, fmt.Errorf("policy engine: mode %q: want %s, %s or %s", cfg.Mode, ModeDefault, ModeAlways, ModeNever)
	}
	if cfg.MaxEntries < 0 {
		return nil, fmt.Errorf("policy engine: %d entries at most: must not be negative", cfg.MaxEntries)
	}
	e := &Engine{
		cluster: cfg.Cluster, scope: cfg.Scope, mode: cfg.Mode, audit: cfg.Audit,
		maxEntries: cfg.MaxEntries,
		identities: map[identity.Number]*ident{},
		byLabel:    map[term]map[*ident]struct{}{},
		selectors:  map[string]*selector{},
		selIndex:   newTermIndex[*selector](),
		objects:    map[string]*object{},
		ruleIndex:  newTermIndex[*rule](),
		ruleSets:   map[string]*ruleSet{},
		byID:       map[uint32]*ruleSet{},
		unclaimed:  map[string]uint32{},
		reserved:   map[uint32]struct{}{},
		origins:    newOrigins(),
		prefixes:   newPrefixes(),
		services:   newServices(),
		names:      newNames(),
		dirty:      map[*ruleSet]struct{}{},
	}
	for hash, id := range cfg.RuleSetIDs {
		if _, taken := e.reserved[id]; taken || id < datapath.FirstRuleSet {
			return nil, fmt.Errorf("policy engine: recovered rule set %d is fixed or given twice", id)
		}
		e.unclaimed[hash] = id
		e.reserved[id] = struct{}{}
	}
	for n := identity.Host; n <= identity.MaxReserved; n++ {
		if name, _ := n.Reserved(); name != "" {
			e.setIdentity(n, labels.New(labels.Label{Source: labels.Reserved, Key: name}), prefixKey{})
		}
	}
	return e, nil
}

// UpsertIdentity adds a workload identity of a cluster or changes its labels.
// Reserved numbers are known already and ignored. It refuses labels that claim
// another cluster than the one that published them, or that are reserved.
func (e *Engine) UpsertIdentity(n identity.Number, cluster string, ls labels.Set) error {
	if _, ok := n.Reserved(); ok {
		return nil
	}
	if n.IsLocal() {
		return fmt.Errorf("add identity %d: not a workload identity", n)
	}
	if c, _ := ls.Get(labels.Mesh, labels.ClusterKey); c != cluster || cluster == "" {
		return fmt.Errorf("add identity %d of cluster %q: its labels say mesh:cluster=%s", n, cluster, c)
	}
	for _, l := range ls {
		if l.Source == labels.Reserved || l.Source == labels.CIDR || l.Source == labels.Any {
			return fmt.Errorf("add identity %d of cluster %q: label %s is not one of a workload", n, cluster, l)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.setIdentity(n, ls, prefixKey{})
	return nil
}

func (e *Engine) setIdentity(n identity.Number, own labels.Set, of prefixKey) {
	ls := e.services.with(n, own)
	if old, ok := e.identities[n]; ok {
		ports := old.ports
		if of.IsValid() {
			ports = e.portsAt(of)
		}
		if old.labels.Equal(ls) && slices.Equal(old.ports, ports) {
			return
		}
		e.dropIdentity(old)
		e.addIdentity(&ident{number: n, own: own, labels: ls, ports: ports, net: of})
		return
	}
	e.addIdentity(&ident{number: n, own: own, labels: ls, ports: e.portsAt(of), net: of})
}

// DeleteIdentity forgets a workload identity.
func (e *Engine) DeleteIdentity(n identity.Number) {
	e.mu.Lock()
	defer e.mu.Unlock()
	id, ok := e.identities[n]
	if _, reserved := n.Reserved(); ok && !reserved {
		e.dropIdentity(id)
	}
}

// UpsertObject adds or replaces the object with the same namespace and name.
func (e *Engine) UpsertObject(o api.Object) {
	e.mu.Lock()
	defer e.mu.Unlock()
	old := e.objects[o.ID()]
	if old != nil && old.spec.Source == o.Source && old.spec.Kind == o.Kind {
		return
	}
	e.replaceObject(old, o)
}

// replaceObject puts an object in the place of its old version, if there is one.
func (e *Engine) replaceObject(old *object, o api.Object) {
	added := e.compile(o)
	for _, r := range added.rules {
		e.ruleIndex.add(r.spec.Endpoints, r)
		for _, rs := range e.ruleSets {
			if r.spec.Endpoints.Matches(rs.labels) {
				e.attach(rs, r)
			}
		}
	}
	// The old version goes last, so that what both share is not forgotten in between.
	if old != nil {
		e.removeObject(old)
	}
	e.objects[o.ID()] = added
}

// SetKubeAPIServers tells where the Kubernetes API servers of the own cluster are,
// whom rules call kube-apiserver, and who are in cluster and mesh: addresses, or prefixes of which each is one.
func (e *Engine) SetKubeAPIServers(at []netip.Prefix) {
	e.mu.Lock()
	defer e.mu.Unlock()
	at = slices.SortedFunc(slices.Values(at), netip.Prefix.Compare)
	at = slices.Compact(at)
	if slices.Equal(e.apiServers, at) {
		return
	}
	e.apiServers = at
	for _, o := range e.objects {
		if o.spec.MeansKubeAPIServer() {
			e.replaceObject(o, o.spec)
		}
	}
}

// DeleteObject removes an object, if it is there.
func (e *Engine) DeleteObject(namespace, name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	id := api.Object{Namespace: namespace, Name: name}.ID()
	if old, ok := e.objects[id]; ok {
		e.removeObject(old)
		delete(e.objects, id)
	}
}

func (e *Engine) removeObject(o *object) {
	e.stopAsking(o.names)
	for _, r := range o.rules {
		e.ruleIndex.remove(r.spec.Endpoints, r)
		for rs := range r.ruleSets {
			e.detach(rs, r)
		}
		for _, p := range r.parts {
			for _, s := range p.selectors {
				e.unuseSelector(s)
			}
			for _, k := range p.prefixes {
				e.unusePrefix(k)
			}
			for _, name := range p.services {
				e.unuseService(name)
			}
			e.origins.release(p.origin)
		}
	}
	e.sweep()
}

// AcquireRuleSet returns the number of the rule set of endpoints with these
// labels and names for ports, and counts one more user. Publish it before an
// endpoint refers to it.
func (e *Engine) AcquireRuleSet(ls labels.Set, ports ...NamedPort) (uint32, error) {
	return e.Acquire(Subject{Labels: ls, Ports: ports})
}

// Acquire is AcquireRuleSet of endpoints that may be audited.
func (e *Engine) Acquire(s Subject) (uint32, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s.Ports = sortedPorts(s.Ports)
	key := s.key()
	if rs, ok := e.ruleSets[key]; ok {
		rs.users++
		return rs.id, nil
	}
	name, ls := s.Name(), s.Labels
	id, err := e.allocate(name)
	if err != nil {
		return 0, err
	}
	rs := newRuleSet(id, s)
	rs.key, rs.name = key, name
	e.ruleSets[key], e.byID[id] = rs, rs
	for r := range e.ruleIndex.candidates(ls) {
		if r.spec.Endpoints.Matches(ls) {
			e.attach(rs, r)
		}
	}
	e.dirty[rs] = struct{}{}
	return id, nil
}

// ReleaseRuleSet undoes one AcquireRuleSet. The last one removes the rule set
// and frees its number.
func (e *Engine) ReleaseRuleSet(ls labels.Set, ports ...NamedPort) {
	e.Release(Subject{Labels: ls, Ports: ports})
}

// Release undoes one Acquire.
func (e *Engine) Release(s Subject) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s.Ports = sortedPorts(s.Ports)
	rs, ok := e.ruleSets[s.key()]
	if !ok {
		return
	}
	if rs.users--; rs.users > 0 {
		return
	}
	for r := range rs.rules {
		e.detach(rs, r)
	}
	delete(e.ruleSets, rs.key)
	delete(e.byID, rs.id)
	delete(e.reserved, rs.id)
	delete(e.dirty, rs)
	e.gone = append(e.gone, rs.id)
}

// maxRuleSet bounds the search for a free number.
const maxRuleSet = 1 << 16

// allocate gives the recovered number of a label set, or the lowest free one.
func (e *Engine) allocate(hash string) (uint32, error) {
	if id, ok := e.unclaimed[hash]; ok {
		delete(e.unclaimed, hash)
		return id, nil
	}
	for id := datapath.FirstRuleSet; id < maxRuleSet; id++ {
		if _, taken := e.reserved[id]; !taken {
			e.reserved[id] = struct{}{}
			return id, nil
		}
	}
	return 0, fmt.Errorf("allocate rule set: all %d are in use", maxRuleSet)
}

// RuleSetIDs are the numbers in use and those recovered but not claimed, for
// Config.RuleSetIDs of the next start.
func (e *Engine) RuleSetIDs() map[string]uint32 {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := maps.Clone(e.unclaimed)
	for _, rs := range e.ruleSets {
		out[rs.name] = rs.id
	}
	return out
}

// DropUnclaimed frees the recovered numbers that no endpoint claimed. Call it
// when all endpoints of the node have been restored.
func (e *Engine) DropUnclaimed() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range e.unclaimed {
		delete(e.reserved, id)
	}
	clear(e.unclaimed)
}

// Publish writes all rule sets that changed since the last call into t, and
// reports how many did. It is for one caller.
func (e *Engine) Publish(t *table.Table[uint32, datapath.RuleSet]) int {
	changes := e.Changes()
	for _, c := range changes {
		if c.Gone {
			t.Delete(c.ID)
		} else if rs, ok := e.RuleSet(c.ID); ok {
			t.Set(c.ID, rs)
		}
	}
	return len(changes)
}

// RuleSet is a copy of a rule set as of the last Changes or Publish.
func (e *Engine) RuleSet(id uint32) (datapath.RuleSet, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	rs, ok := e.byID[id]
	if !ok {
		return datapath.RuleSet{}, false
	}
	row := rs.row()
	row.Audit = rs.audit || e.audit
	return row, true
}

// Origin is the rule behind a number: "demo/l3-rule ingress[0]". Empty when
// the number was never given or its rule has long been gone.
func (e *Engine) Origin(n uint32) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.origins.text(n)
}

// DenyOrigin names the objects that put a rule set's endpoints into default
// deny: "demo/l3-rule default deny", and says when rules are left out for lack of
// room. Empty when there is neither.
func (e *Engine) DenyOrigin(id uint32, d datapath.Direction) string {
	if id == datapath.InitRuleSet {
		return "identity init: waiting for policies"
	}
	var why []string
	names := e.selecting(id, func(r *rule) bool { return r.spec.DefaultDeny[d] })
	switch {
	case len(names) > 0:
		why = append(why, strings.Join(names, ", ")+" default deny")
	case e.mode == ModeAlways:
		why = append(why, "policy is always enforced on this node, and no rule allows it")
	}
	if missed := e.missed(id, d); missed != "" {
		why = append(why, missed)
	}
	return strings.Join(why, "; ")
}

// Selecting are the objects with a rule that selects the endpoints of a rule
// set, as namespace/name, sorted.
func (e *Engine) Selecting(id uint32) []string {
	return e.selecting(id, func(*rule) bool { return true })
}

func (e *Engine) selecting(id uint32, want func(*rule) bool) []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	rs, ok := e.byID[id]
	if !ok {
		return nil
	}
	names := map[string]struct{}{}
	for r := range rs.rules {
		if want(r) {
			names[r.object] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(names))
}
