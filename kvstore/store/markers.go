// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// Markers tell a Reader which history the store has and whether it is complete.
type Markers interface {
	// Incarnation names the store's history; "" while it has no name yet.
	Incarnation(ctx context.Context) (string, error)
	// Renamed blocks until the history has a name that is not known, and returns
	// nil then; an error says that it cannot tell any more.
	Renamed(ctx context.Context, known string) error
	// Complete reports whether all records of a kind of a cluster are in the
	// store again, and the revision at which that was said.
	Complete(ctx context.Context, cluster string, k kvstore.Kind) (rev int64, ok bool, err error)
}

// SyncedMarkers are the Markers that API servers write: the keys
// local/<own>/synced/, read from the store itself each time, never from a view
// that may be older. Whoever restores a store from a backup must remove them
// together with the old incarnation.
type SyncedMarkers struct {
	Client kvstore.Client
	Own    string // the agent's cluster
}

var _ Markers = SyncedMarkers{}

type marker struct {
	kind kvstore.Kind
	rev  int64
	msg  *keyspacev1.Synced
}

// Incarnation is that of the own cluster's markers. While they are being
// replaced and disagree it is that of the newest.
func (m SyncedMarkers) Incarnation(ctx context.Context) (string, error) {
	all, err := m.read(ctx, m.Own)
	if err != nil {
		return "", err
	}
	inc, newest := "", int64(0)
	for _, x := range all {
		if x.rev > newest {
			inc, newest = x.msg.GetIncarnation(), x.rev
		}
	}
	return inc, nil
}

// errRenamed ends the watch of the markers.
var errRenamed = errors.New("the store's history has another name")

// Renamed reads the markers whenever one changes. That there are none is no name:
// they are replaced, or somebody removed them.
func (m SyncedMarkers) Renamed(ctx context.Context, known string) error {
	prefix := kvstore.KindPrefix(kvstore.Local, m.Own, kvstore.KindSynced) + m.Own + "/"
	_, rev, err := m.Client.Get(ctx, prefix)
	if err != nil {
		return err
	}
	look := func() error {
		inc, err := m.Incarnation(ctx)
		if err == nil && inc != "" && inc != known {
			return errRenamed
		}
		return err
	}
	if err = look(); err == nil {
		err = m.Client.Watch(ctx, prefix, rev+1, func(b kvstore.WatchBatch) error {
			if len(b.Events) == 0 {
				return nil
			}
			return look()
		})
	}
	if errors.Is(err, errRenamed) {
		return nil
	}
	return err
}

// Complete goes by the marker of the kind. Both directories of identities share
// that of identities/id. A kind that has no marker is complete when the cluster
// has markers and all of them are.
func (m SyncedMarkers) Complete(ctx context.Context, cluster string, k kvstore.Kind) (int64, bool, error) {
	all, err := m.read(ctx, cluster)
	if err != nil {
		return 0, false, err
	}
	if k == kvstore.KindIdentityLabels {
		k = kvstore.KindIdentity
	}
	rev, complete := int64(0), len(all) > 0
	for _, x := range all {
		done := x.msg.GetState() == keyspacev1.Synced_STATE_COMPLETE
		if x.kind == k {
			return x.rev, done, nil
		}
		complete = complete && done
		rev = max(rev, x.rev)
	}
	return rev, complete && !hasMarker(k), nil
}

// hasMarker lists the kinds that are never complete without a marker of their
// own.
func hasMarker(k kvstore.Kind) bool {
	switch k {
	case kvstore.KindPolicy, kvstore.KindIdentity, kvstore.KindNode, kvstore.KindIP,
		kvstore.KindVTEP, kvstore.KindService, kvstore.KindServiceID, kvstore.KindSlice:
		return true
	}
	return false
}

func (m SyncedMarkers) read(ctx context.Context, cluster string) ([]marker, error) {
	prefix := kvstore.KindPrefix(kvstore.Local, m.Own, kvstore.KindSynced) + cluster + "/"
	p, err := m.Client.List(ctx, prefix, "", 0, 0)
	if err != nil {
		return nil, err
	}
	var out []marker
	for _, kv := range p.KVs {
		k, err := kvstore.ParseKey(kv.Key)
		if err != nil {
			continue
		}
		msg, err := kvstore.Decode(k, kv.Value)
		if err != nil {
			continue // a marker that cannot be read says nothing
		}
		if s, ok := msg.(*keyspacev1.Synced); ok {
			out = append(out, marker{kvstore.Kind(k.Names[1]), kv.ModRevision, s})
		}
	}
	return out, nil
}
