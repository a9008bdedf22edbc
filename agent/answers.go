// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"net/netip"
	"strings"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/ipcache"
	"github.com/hawser-mesh/hawser/identity/labels"
)

// Labels implements observe.Resolver.
func (v *view) Labels(n identity.Number) []string {
	if name, reserved := n.Reserved(); reserved {
		if name == "" {
			return nil
		}
		return []string{labels.Reserved + ":" + name}
	}
	if n.IsLocal() {
		ls, _ := v.engine.Labels(n)
		return ls.Strings()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.identities[n].labels.Strings()
}

// Workload implements observe.Resolver.
func (v *view) Workload(a netip.Addr) (workload, cluster, node string) {
	e, ok := v.ips.Lookup(a)
	if !ok {
		return "", "", ""
	}
	if e.Workload == "" && e.Source == ipcache.KindNode {
		return "node/" + e.Node, e.Cluster, e.Node
	}
	return e.Workload, e.Cluster, e.Node
}

// Identity implements observe.Resolver.
func (v *view) Identity(a netip.Addr) identity.Number {
	if e, ok := v.ips.Lookup(a); ok {
		return e.Identity
	}
	return identity.Unknown
}

// whois is the workload that the keyspace has for an address, and the labels of
// an identity.
func (v *view) whois(a netip.Addr, n identity.Number) (namespace, name string, ls []string) {
	workload, _, _ := v.Workload(a)
	namespace, name, _ = strings.Cut(workload, "/")
	return namespace, name, v.Labels(n)
}

// Origin implements observe.Resolver.
func (v *view) Origin(ruleSet uint32, d datapath.Direction, origin uint32) string {
	if ruleSet == datapath.InitRuleSet {
		return "init: policies are not known yet"
	}
	if origin != 0 {
		return v.engine.Origin(origin)
	}
	return v.engine.DenyOrigin(ruleSet, d)
}

// policyProblems are the objects that cannot be enforced, with the reason.
func (v *view) policyProblems() map[string]string {
	v.mu.Lock()
	defer v.mu.Unlock()
	out := make(map[string]string, len(v.policies))
	for id, p := range v.policies {
		out[id] = strings.ReplaceAll(p, "\n", "; ")
	}
	return out
}

// mute reports whether there are policies whose text is not understood.
func (v *view) mute() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.policies) > 0
}

// knows reports whether an identity's labels are known.
func (v *view) knows(n identity.Number) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, ok := v.identities[n]
	return ok
}

// clusterName is the cluster of an id, empty when unknown.
func (v *view) clusterName(id uint32) string {
	v.mu.Lock()
	defer v.mu.Unlock()
	for name, i := range v.clusters {
		if i == id {
			return name
		}
	}
	return ""
}

// lookupCluster is the id of a cluster, 0 when unknown.
func (v *view) lookupCluster(name string) uint32 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.clusters[name]
}
