// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"bytes"
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/backoff"
	"github.com/hawser-mesh/hawser/kvstore"
)

// said is what the markers of a peer's kinds say.
type said struct {
	state keyspacev1.Synced_State
	at    *keyspacev1.Position
}

// mark sets the synced markers of all kinds, and with the complete ones stores
// the position; then complete is called with the status held. Markers that say so
// already are left alone.
func (im *importer) mark(ctx context.Context, state keyspacev1.Synced_State, at *keyspacev1.Position, complete func()) error {
	say := said{state, proto.CloneOf(at)}
	ops, _, err := im.unmarked(ctx, say)
	if err != nil {
		return err
	}
	if state == keyspacev1.Synced_STATE_COMPLETE {
		if !bytes.Equal(encode(im.stored), encode(im.position)) || !bytes.Equal(im.checked, im.mirror.content()) {
			ops = append(ops, im.progressOp())
		}
	}
	if len(ops) > 0 {
		if err := im.txn(ctx, ops); err != nil {
			return err
		}
	}
	im.sentry.said = say
	if state == keyspacev1.Synced_STATE_COMPLETE {
		names := make([]string, len(kvstore.PublicKinds))
		for i, k := range kvstore.PublicKinds {
			names[i] = string(k)
		}
		im.st.do(func() { im.st.synced = names; complete() })
	}
	return nil
}

// unmarked are the writes after which all markers say so, and what was found in
// their places.
func (im *importer) unmarked(ctx context.Context, say said) (ops []kvstore.Op, was []*kvstore.KV, err error) {
	page, err := im.kv.List(ctx, im.sentry.markers, "", 1000, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("read synced markers: %w", err)
	}
	present := map[string]*kvstore.KV{}
	for _, kv := range page.KVs {
		present[kv.Key] = &kv
	}
	for _, k := range kvstore.PublicKinds {
		key := kvstore.SyncedKey(im.own, im.peer, k).String()
		found, old := present[key], new(keyspacev1.Synced)
		if found != nil && proto.Unmarshal(found.Value, old) == nil &&
			old.GetState() == say.state && old.GetIncarnation() == say.at.GetIncarnation() &&
			(say.state == keyspacev1.Synced_STATE_COMPLETE || old.GetRevision() == say.at.GetRevision()) {
			continue
		}
		was = append(was, found)
		ops = append(ops, kvstore.Put(key, encode(&keyspacev1.Synced{
			Incarnation: say.at.GetIncarnation(), Revision: say.at.GetRevision(), State: say.state, UpdatedAt: im.st.now().UnixNano(),
		})))
	}
	return ops, was, nil
}

// remark puts markers back that somebody removed or changed since they were set:
// agents that start wait for them.
func (im *importer) remark(ctx context.Context) error {
	if im.sentry.said.at == nil || !im.sentry.markersChanged() {
		return nil
	}
	ops, was, err := im.unmarked(ctx, im.sentry.said)
	if err != nil || len(ops) == 0 {
		return err
	}
	if err := im.txn(ctx, ops); err != nil {
		return err
	}
	for i, op := range ops {
		if key, err := kvstore.ParseKey(op.Key); err == nil && im.putBack != nil {
			im.putBack(key, was[i])
		}
	}
	return nil
}

// watchMarkers has remark look whenever a marker is written or removed, until the
// context ends.
func (s *sentry) watchMarkers(ctx context.Context, c *Config) {
	wait := backoff.New(c.BackoffMin, c.BackoffMax)
	for {
		_, rev, err := s.kv.Get(ctx, s.markers)
		if err == nil {
			s.markerWritten() // what happened before is not told
			_ = s.kv.Watch(ctx, s.markers, rev+1, func(b kvstore.WatchBatch) error {
				wait.Reset()
				if len(b.Events) > 0 {
					s.markerWritten()
				}
				return nil
			})
		}
		if wait.Wait(ctx) != nil {
			return
		}
	}
}

func (s *sentry) markerWritten() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.marks = true
	s.poke()
}

// markersChanged reports whether a marker was written since it was asked last.
func (s *sentry) markersChanged() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	changed := s.marks
	s.marks = false
	return changed
}
