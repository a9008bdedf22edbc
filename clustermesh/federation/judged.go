// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"fmt"
	"strings"
	"time"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
)

// Judged fills in how many keys below state/<peer>/ the peer's grant allows, and
// what of them is refused and why, as a mirror of them would be judged. It is for
// clusters that share an etcd, where there is none, and reads all keys.
func Judged(ctx context.Context, kv kvstore.Client, peer *keyspacev1.Peer, out *hawserv1.PeerStatus) error {
	guard, err := peering.NewGuard(peer, nil)
	if guard == nil {
		return fmt.Errorf("judge what %s publishes: %w", peer.GetName(), err)
	}
	st := newPeerState(time.Now)
	used := map[kvstore.Kind]uint64{}
	prefix := kvstore.Prefix(kvstore.State, peer.GetName())
	out.Keys, out.KeysByKind = 0, map[string]uint64{}
	for after, rev := "", int64(0); ; {
		page, err := kv.List(ctx, prefix, after, 1000, rev)
		if err != nil {
			return fmt.Errorf("read what %s publishes: %w", peer.GetName(), err)
		}
		rev = page.Revision
		for _, kv := range page.KVs {
			after = kv.Key
			j := judge(peer.GetName(), guard, &federationv1.Change{Key: strings.TrimPrefix(kv.Key, prefix), Value: kv.Value})
			if j.err == nil && used[j.kind]+j.weight > guard.Limit(j.kind) {
				j.err = overLimit(j, guard)
			}
			if j.err != nil {
				st.refuseRecord(j, j.err)
				continue
			}
			used[j.kind] += j.weight
			out.Keys++
			out.KeysByKind[string(j.kind)]++
		}
		if !page.More {
			out.Refused, out.LastRefused, out.RefusedNow = st.refused, st.refusals.lines(), uint32(len(st.refusals.standing))
			return nil
		}
	}
}

// overLimit is why a record that is one too many is refused.
func overLimit(j judged, guard *peering.Guard) *kvstore.BadRecord {
	return &kvstore.BadRecord{Key: j.full, Reason: peering.ReasonLimit, Detail: fmt.Sprintf("more than the granted %d of kind %s", guard.Limit(j.kind), j.kind)}
}
