// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"strings"
	"sync"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

// unreadableShown is how many keys are told one by one.
const unreadableShown = 10

// unreadable are the keys that this node watches and cannot read. What such a
// key said before still holds, where this agent has read that.
type unreadable struct {
	own    string // our cluster: what is another's below state/ is a copy
	shared bool   // unless clusters share the etcd: then it is the original

	mu   sync.Mutex
	keys map[kvstore.Subtree][]store.Unreadable
}

func newUnreadable(own string, shared bool) *unreadable {
	return &unreadable{own: own, shared: shared, keys: map[kvstore.Subtree][]store.Unreadable{}}
}

// apply takes a batch of the reader of a subtree.
func (u *unreadable) apply(s kvstore.Subtree, b store.Batch) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.keys[s] = b.Unreadable
}

// policies reports whether a policy is among them.
func (u *unreadable) policies() bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.ContainsFunc(u.keys[kvstore.Local], func(k store.Unreadable) bool { return k.Kind == kvstore.KindPolicy })
}

// what is in force of a key that cannot be read.
func what(k store.Unreadable) string {
	if k.Said {
		return "what it said before still holds"
	}
	return "this agent, since it started, has never read what it said before, and goes without"
}

// problems tells each key and what to do about it, the first ones by name.
func (u *unreadable) problems() []*hawserv1.Problem {
	u.mu.Lock()
	all := slices.Concat(u.keys[kvstore.State], u.keys[kvstore.Local])
	u.mu.Unlock()
	slices.SortFunc(all, func(a, b store.Unreadable) int { return strings.Compare(a.String(), b.String()) })
	var out []*hawserv1.Problem
	for _, k := range all[:min(len(all), unreadableShown)] {
		name := strings.TrimPrefix(k.String(), kvstore.Root)
		p := &hawserv1.Problem{
			Object: "key " + name, Problem: "its record cannot be read; " + what(k),
			Fix: "see it: hawser kvstore get " + name + "; its writer replaces it, or: hawser kvstore del " + name + " --write",
		}
		switch {
		case k.Subtree != kvstore.State || k.Cluster == u.own:
		case u.shared:
			p.Fix = "see it: hawser kvstore get " + name + "; its writer in " + k.Cluster + ", which shares this etcd, replaces it"
		default:
			p.Fix = "see it: hawser kvstore get " + name + "; if `hawser kvstore diff " + k.Cluster + "` lists it, our copy is damaged: hawser-apiserver " +
				"copies all of " + k.Cluster + " again by itself, once a minute at the most; else its writer there replaces it"
		}
		if k.Kind == kvstore.KindPolicy {
			p.Problem += "; an agent that starts takes no pod, and judges none anew, until it can be read"
			p.Fix = "apply it again, or delete it: hawser policy delete -n " + k.Names[0] + " " + k.Names[1]
		}
		out = append(out, p)
	}
	if more := len(all) - len(out); more > 0 {
		out[len(out)-1].Problem += "; and there are more: hawser kvstore tree"
	}
	return out
}
