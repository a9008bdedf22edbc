// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"time"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

const (
	// askEvery spaces the reads of unknown identities: at most 100 a second.
	askEvery = 10 * time.Millisecond
	// notThere is how long an answer "there is no such identity" is believed.
	notThere = 5 * time.Second
	// askBacklog is the number of identities that wait to be read; more than
	// these arrive by the watch or not at all.
	askBacklog = 256
)

// unknowns reads identities whose packets arrived before their labels. The drop
// that tells of one is not undone; the sender's next try passes.
type unknowns struct {
	a *Agent
	// get reads a key of the keyspace; a missing one is (nil, revision, nil).
	get func(ctx context.Context, key string) (*kvstore.KV, int64, error)
	ask chan identity.Number
}

// seen takes note of a drop, whichever of its ends was not known; it does not block.
func (u *unknowns) seen(e datapath.Event) {
	for _, n := range []identity.Number{e.SourceID, e.DestID} {
		if _, workload := u.a.space.Cluster(n); !workload {
			continue
		}
		select {
		case u.ask <- n:
		default:
		}
	}
}

// run reads each identity once, until the context ends.
func (u *unknowns) run(ctx context.Context) error {
	missing := map[identity.Number]time.Time{}
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		var n identity.Number
		select {
		case <-ctx.Done():
			return nil
		case n = <-u.ask:
		}
		now := time.Now()
		for m, since := range missing {
			if now.Sub(since) > notThere {
				delete(missing, m)
			}
		}
		if _, asked := missing[n]; asked || u.a.view.knows(n) {
			continue
		}
		missing[n] = now
		if err := u.read(ctx, n); err != nil {
			u.a.log.Warn("read unknown identity", "identity", n, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (u *unknowns) read(ctx context.Context, n identity.Number) error {
	id, ok := u.a.space.Cluster(n)
	if !ok {
		return nil
	}
	cluster := u.a.view.clusterName(id)
	if cluster == "" {
		return nil
	}
	key := kvstore.NewKey(kvstore.State, cluster, kvstore.KindIdentity, kvstore.NumberName(uint32(n)))
	kv, _, err := u.get(ctx, key.String())
	if err != nil || kv == nil {
		return err
	}
	record, err := kvstore.Limits{Space: u.a.space, ClusterID: u.a.view.lookupCluster}.Decode(key, kv.Value)
	if err != nil {
		return err
	}
	u.a.grants.state(store.Batch{Changes: []store.Change{{Key: key, KV: *kv, Record: record}}})
	u.a.log.Info("read an identity before the watch brought it", "identity", n)
	return nil
}
