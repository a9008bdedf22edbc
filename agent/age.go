// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"time"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/kvstore/store"
	"github.com/hawser-mesh/hawser/loadbalancer"
)

// verdicts are what the API server says of the age of each peer's records. Until
// it is known what it says nothing of a peer is believed: its numbers may be
// others' by now.
type verdicts struct {
	read    bool // local/ was listed once
	expired map[string]bool
}

// believes reports whether the identities of a cluster count.
func (v *view) believes(cluster string) bool {
	return cluster == v.own || v.verdicts.read && !v.verdicts.expired[cluster]
}

// peer takes what the API server says of a peer: how old its records are.
func (v *view) peer(c store.Change) {
	name, age := c.Key.Names[0], loadbalancer.Fresh
	delete(v.propagation.offsets, name)
	if r, ok := c.Record.(*keyspacev1.PeerView); ok && !c.Deleted {
		age = loadbalancer.AgeOf(r.GetData())
		v.propagation.offsets[name] = time.Duration(r.GetClockOffset())
	}
	if name == v.own {
		return
	}
	v.lb.SetAge(name, age)
	before := v.believes(name)
	if delete(v.verdicts.expired, name); age == loadbalancer.Expired {
		v.verdicts.expired[name] = true
	}
	if now := v.believes(name); now != before {
		v.log.Info("identities of a peer", "peer", name, "data", age.String(), "believed", now)
		v.rejudge(name)
	}
}

// verdictsRead begins to believe the peers of which nothing else was said.
func (v *view) verdictsRead() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.verdicts.read {
		return
	}
	v.verdicts.read = true
	v.names.judged.Store(true)
	for n, k := range v.identities {
		v.judge(n, k)
	}
	v.publish()
}

// rejudge makes the identities of a peer count, or not. Their labels stay known
// to who asks for them.
func (v *view) rejudge(cluster string) {
	for n, k := range v.identities {
		if k.cluster == cluster {
			v.judge(n, k)
		}
	}
}

// judge puts an identity into the tables if it counts, else it takes it out:
// its packets are dropped as of an identity that is not known yet.
func (v *view) judge(n identity.Number, k knownIdentity) {
	if !v.believes(k.cluster) {
		v.engine.DeleteIdentity(n)
		v.unknow(n)
		return
	}
	if err := v.engine.UpsertIdentity(n, k.cluster, k.labels); err != nil {
		v.log.Warn("identity not usable", "identity", n, "error", err)
		return
	}
	v.engine.SetNamedPorts(n, v.ports.of(n))
	id, _ := v.space.Cluster(n)
	v.known[n] = datapath.Identity{Number: n, ClusterID: id}
}

// unknow makes an identity unknown to the datapath: at once, before its entries go
// from the rule sets.
func (v *view) unknow(n identity.Number) {
	delete(v.known, n)
	v.tables.Identities.Delete(n)
}
