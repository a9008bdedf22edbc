// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"testing"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

func TestMirrorsBothWays(t *testing.T) {
	a, b := newCluster(t, 1), newCluster(t, 2)
	a.fill(0, 2500) // before the join: the snapshot has several batches
	b.ip(1, "one")
	b.identity(2<<16+7, "id=app", "mesh:cluster="+b.name) // refused: no source
	joinPeers(t, a, b)
	eventually(t, "snapshot arrived", func() bool { return sameKeys(a.keys(a), b.keys(a)) })
	if s := b.status(a); s.GetSnapshotsReceived() != 1 || s.GetChangesReceived() != 2500 || s.GetKeys() != 2500 {
		t.Errorf("b's status of a: %v", s)
	}

	key := a.ip(7000, "new")
	other := b.ip(2, "two")
	eventually(t, "changes arrived", func() bool { return b.get(key) != nil && a.get(other) != nil })
	a.ip(7000, "renamed")
	eventually(t, "update arrived", func() bool {
		var e keyspacev1.IPEntry
		return proto.Unmarshal(b.get(key), &e) == nil && e.GetWorkload() == "renamed"
	})
	a.del(key)
	eventually(t, "deletion arrived", func() bool { return b.get(key) == nil })

	marker := kvstore.NewKey(kvstore.Local, b.name, kvstore.KindSynced, a.name, string(kvstore.KindIP)).String()
	var m keyspacev1.Synced
	if err := proto.Unmarshal(b.get(marker), &m); err != nil || m.GetState() != keyspacev1.Synced_STATE_COMPLETE || m.GetIncarnation() == "" || m.GetRevision() == 0 {
		t.Errorf("marker %s: %v %v", marker, &m, err)
	}
	var v keyspacev1.PeerView
	eventually(t, "peer view", func() bool {
		return proto.Unmarshal(b.get(kvstore.NewKey(kvstore.Local, b.name, kvstore.KindPeerView, a.name).String()), &v) == nil && v.GetConnected()
	})
	eventually(t, "no lag when idle", func() bool {
		s := b.status(a)
		return s.GetLagEvents() == 0 && s.GetLagSeconds() == 0 && s.GetLagP99Seconds() > 0
	})
	if a.status(b).GetRefused()["labels"] != 1 {
		t.Errorf("refused: %v %v", a.status(b).GetRefused(), a.status(b).GetLastRefused())
	}
}
