// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/policy"
)

// rollout is how far this node's policies have come: which objects became rows,
// and which revisions of the tables have them.
type rollout struct {
	objects  map[string]uint64 // namespace/name → PolicyObject.revision
	changed  bool              // since the tables' revisions were noted
	ruleSets uint64
	ipcache  uint64
}

func newRollout() *rollout { return &rollout{objects: map[string]uint64{}} }

// note takes the tables' revisions when what changed has been published.
func (r *rollout) note(ruleSets, ipcache uint64) {
	if r.changed {
		r.ruleSets, r.ipcache, r.changed = ruleSets, ipcache, false
	}
}

// policyRollout are the objects that the engine has, and the revisions of the
// tables that tell it to the kernel.
func (v *view) policyRollout() rollout {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := *v.rollout
	out.objects = maps.Clone(out.objects)
	return out
}

// enforced are the policy objects of this node, and whether the kernel has them
// all.
func (a *Agent) enforced() (objects map[string]uint64, settled bool) {
	r := a.view.policyRollout()
	want := map[string]uint64{a.tables.RuleSets.Name(): r.ruleSets, a.tables.IPCache.Name(): r.ipcache}
	for _, t := range a.reconciler.Status() {
		if t.Reconciled < want[t.Table] {
			return r.objects, false
		}
	}
	return r.objects, !r.changed
}

// policyProblems are the policies that cannot be read, and those that are enforced in
// part.
func (a *Agent) policyProblems() (out []*hawserv1.Problem) {
	for id, p := range a.view.policyProblems() {
		out = append(out, &hawserv1.Problem{Object: policyObject + id, Problem: p, Fix: "apply it anew: hawser policy apply -f FILE"})
	}
	out = append(out, shortOfRoom(a.cfg.Cluster, a.view.engine.Shortages())...)
	return append(out, tooManyEntries(a.view.engine.Excesses())...)
}

// tooManyEntries tells the objects of whose rules some are left out, because a rule
// set has no room for all entries.
func tooManyEntries(all []policy.Excess) (out []*hawserv1.Problem) {
	for _, x := range all {
		var directions []string
		for _, d := range x.Directions {
			directions = append(directions, d.String())
		}
		left := "what it allows single peers is left out"
		if x.Closed {
			left = "nothing is let through"
		}
		out = append(out, &hawserv1.Problem{
			Object: policyObject + x.Object,
			Problem: fmt.Sprintf("%s: %s: all policies together are more than %d entries (ports times peers) for each of %d kinds of endpoint, this one about %d",
				strings.Join(directions, " and "), left, x.Limit, x.RuleSets, x.Entries),
			Fix: "write ranges instead of single ports, or select fewer peers; if a peer cluster has more identities than it should have: hawser mesh grant PEER --max-identities NUMBER",
		})
	}
	return out
}

// policyObject is before the name of a policy that a problem is about.
const policyObject = "policy "

// toldProblems is NodeStatus.policy_problems: some of what policyProblems has.
func (a *Agent) toldProblems() map[string]string {
	const most = 32
	all := map[string]string{}
	for _, p := range a.policyProblems() {
		id, text := strings.TrimPrefix(p.GetObject(), policyObject), p.GetProblem()+" ("+p.GetFix()+")"
		if all[id] != "" {
			text = all[id] + "; " + text
		}
		all[id] = text
	}
	for _, id := range slices.Sorted(maps.Keys(all))[min(len(all), most):] {
		delete(all, id)
	}
	return all
}

// enforcedRevisions is NodeStatus.enforced: the newest policy seen, once it is in
// the kernel.
func (a *Agent) enforcedRevisions() map[string]int64 {
	seen := a.view.seenRevisions()[string(kvstore.KindPolicy)]
	if _, settled := a.enforced(); !settled || seen == 0 {
		return nil
	}
	return map[string]int64{string(kvstore.KindPolicy): seen}
}
