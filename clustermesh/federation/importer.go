// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/election"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
)

// inbound is one of what a stream brings for the importer, in order.
type inbound struct {
	batch  *federationv1.Batch
	resync *federationv1.Resync
	mark   *keyspacev1.Position // a heartbeat's low-water mark
	look   bool                 // at what somebody else may have written

	changes []judged // of the batch, once judged
}

const (
	inboundQueued = 32
	judgedQueued  = 8
	// groupChanges: batches that wait are applied together up to so many
	// changes, so that a slow store gets fewer and fuller transactions. It is
	// half of what a sender may have under way: the rest arrives meanwhile.
	groupChanges = 4000
	// noteWithin is how long the end of a stream, and so that of an API server,
	// waits for the store to note that a copy is whole.
	noteWithin = 2 * time.Second
)

var (
	errLockLost = errors.New("another API server took over the import")
)

// importer writes one peer's changes to state/<peer>/ in our store, on one
// stream.
type importer struct {
	kv        kvstore.Client
	own, peer string
	lock      *election.Term // compared by every write
	cfg       *Config
	guard     *peering.Guard
	st        *peerState
	codec     *codec
	send      func(*federationv1.Frame) error
	log       *slog.Logger
	// source is the incarnation that the peer's hello named.
	source string
	// learn takes what the peer says of itself.
	learn func(*keyspacev1.Cluster)
	// putBack is told of the markers that were put back; nil: nobody wants to know.
	putBack func(kvstore.Key, *kvstore.KV)

	in     chan inbound
	next   chan inbound
	sentry *sentry

	// Owned by apply.
	mirror      *mirror
	stored      *keyspacev1.Position // in our store
	storedAt    time.Time
	position    *keyspacev1.Position // applied
	sameGrant   bool                 // what is in the mirror was judged by our grant
	checked     []byte               // the mirror's content as stored beside the position; nil: it is not
	damaged     bool                 // the mirror was not what had been stored
	loaded      int64                // revision at which it was read
	spoilt      bool                 // somebody changed it since,
	patient     bool                 // and it is too early to copy it again
	incarnation string               // of the running resync; empty before the first
	snapshot    *federationv1.Resync // the running snapshot
	held        *inbound             // taken before its turn
	refused     uint64               // in the running snapshot
	sequence    uint64               // of the newest batch
	target      int64                // nothing is missing once position is there
}

func newImporter(im importer) *importer {
	im.in, im.next = make(chan inbound, inboundQueued), make(chan inbound, judgedQueued)
	im.sentry = newSentry(im.kv, im.own, im.peer)
	return &im
}

// receive hands on what came; it blocks while the importer is behind.
func (im *importer) receive(ctx context.Context, i inbound) error {
	select {
	case im.in <- i:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run subscribes and applies until the context ends or the office is lost.
func (im *importer) run(ctx context.Context) error {
	var err error
	if im.mirror, im.loaded, err = loadMirror(ctx, im.kv, im.peer); err != nil {
		return err
	}
	if err := errors.Join(im.loadPosition(ctx), im.recall(ctx)); err != nil {
		return err
	}
	im.publish()
	err = im.send(&federationv1.Frame{Body: &federationv1.Frame_Subscribe{Subscribe: &federationv1.Subscribe{Position: im.stored}}})
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return im.judgeAll(ctx) })
	g.Go(func() error { return im.applyAll(ctx) })
	g.Go(func() error { return im.sentry.run(ctx, im.cfg) })
	return g.Wait()
}

func (im *importer) progressKey() string {
	return kvstore.NewKey(kvstore.Private, im.own, kvstore.KindProgress, im.peer).String()
}

func (im *importer) loadPosition(ctx context.Context) error {
	kv, _, err := im.kv.Get(ctx, im.progressKey())
	if err != nil {
		return fmt.Errorf("read position of %s: %w", im.peer, err)
	}
	im.stored = &keyspacev1.Position{}
	if kv != nil && proto.Unmarshal(kv.Value, im.stored) != nil {
		im.stored = &keyspacev1.Position{} // unreadable is the same as none
	}
	if im.sameGrant = bytes.Equal(im.stored.GetGrant(), im.guard.Hash()); !im.sameGrant {
		// What was refused may be granted now, and the other way round.
		im.stored = &keyspacev1.Position{}
	}
	if im.checked = im.stored.GetContent(); im.checked != nil && !bytes.Equal(im.checked, im.mirror.content()) {
		// What went missing behind our back comes by no change of the peer's.
		im.log.Warn("the copy is not what was stored; all is copied again", "peer", im.peer, "keys", len(im.mirror.entries))
		im.stored, im.damaged = &keyspacev1.Position{}, true
	}
	im.stored.Grant, im.stored.Content = nil, nil
	im.storedAt, im.position = time.Now(), proto.CloneOf(im.stored)
	return nil
}

// publish shows what stands to status.
func (im *importer) publish() {
	kinds, pos := im.mirror.kinds(), proto.CloneOf(im.position)
	im.st.do(func() { im.st.kinds, im.st.position = kinds, pos })
}

// judgeAll unpacks and checks the next batches while apply writes one.
func (im *importer) judgeAll(ctx context.Context) error {
	for {
		var i inbound
		select {
		case i = <-im.in:
		case <-ctx.Done():
			return nil
		}
		if i.batch != nil {
			changes, err := im.codec.unpack(i.batch.GetChangesZstd())
			if err != nil {
				return fmt.Errorf("batch %d of %s: %w", i.batch.GetSequence(), im.peer, err)
			}
			i.changes = make([]judged, len(changes))
			for n, c := range changes {
				i.changes[n] = judge(im.peer, im.guard, c)
			}
		}
		select {
		case im.next <- i:
		case <-ctx.Done():
			return nil
		}
	}
}

func (im *importer) applyAll(ctx context.Context) error {
	for {
		i, err := im.take(ctx)
		if err != nil || i == nil {
			return err
		}
		switch {
		case i.resync != nil:
			err = im.begin(ctx, i.resync)
		case i.batch != nil:
			err = im.batches(ctx, i)
		case i.mark != nil:
			err = im.idle(ctx, i.mark)
		case i.look:
			err = im.inspect(ctx)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("apply changes of %s: %w", im.peer, err)
		}
		im.publish()
	}
}

// take waits for what is to be applied next; nil says that the context ended.
func (im *importer) take(ctx context.Context) (*inbound, error) {
	if i := im.held; i != nil {
		im.held = nil
		return i, nil
	}
	select {
	case i := <-im.next:
		return &i, nil
	case <-im.sentry.wake:
		return &inbound{look: true}, nil
	case <-im.lock.Lost():
		return nil, errLockLost
	case <-ctx.Done():
		return nil, nil //nolint:nilnil // as documented
	}
}

// another is the next batch, if it waits already; what is none is held back for
// take.
func (im *importer) another() *inbound {
	select {
	case i := <-im.next:
		if i.batch != nil {
			return &i
		}
		im.held = &i
	default:
	}
	return nil
}

// begin starts a resume or a snapshot.
func (im *importer) begin(ctx context.Context, r *federationv1.Resync) error {
	if r.GetIncarnation() != im.source {
		return violate(reasonProtocol, "its resync is of incarnation %q, its hello of %q", shorten(r.GetIncarnation()), im.source)
	}
	im.incarnation, im.target = r.GetIncarnation(), r.GetTarget()
	if r.GetMode() == federationv1.Resync_MODE_RESUME {
		if r.GetIncarnation() != im.position.GetIncarnation() || r.GetRevision() != im.position.GetRevision() {
			return violate(reasonPosition, "it resumes from %d; we stand at %d", r.GetRevision(), im.position.GetRevision())
		}
		im.log.Info("resumed", "peer", im.peer, "revision", r.GetRevision(), "keys", len(im.mirror.entries))
		im.st.do(func() { im.st.resumesReceived++; im.st.lastSync = "resume" })
		im.sentry.start(im.loaded)
		if err := im.mark(ctx, keyspacev1.Synced_STATE_COMPLETE, im.position, func() {}); err != nil {
			return err
		}
		im.caughtUp()
		return nil
	}
	if err := im.uncheck(ctx); err != nil {
		return err
	}
	im.snapshot, im.refused = r, 0
	im.mirror.beginSnapshot()
	im.st.do(func() { im.st.synced = nil; im.st.refusals.forget() }) // all is sent anew
	im.log.Info("snapshot begins", "peer", im.peer, "revision", r.GetRevision(), "reason", shorten(r.GetReason()))
	return im.mark(ctx, keyspacev1.Synced_STATE_COPYING, &keyspacev1.Position{Incarnation: r.GetIncarnation(), Revision: r.GetRevision()}, nil)
}

// batches applies a batch, together with those behind it that wait already, and
// acknowledges them by the last one. Should one not follow from the one before,
// those before are applied all the same.
func (im *importer) batches(ctx context.Context, first *inbound) error {
	var changes []judged
	var last *federationv1.Batch
	var broken error
	moved := false
	taken := make([]uint64, 0, judgedQueued)
	for i := first; i != nil; {
		b := i.batch
		if broken = im.follows(b, len(i.changes)); broken != nil {
			break
		}
		changes, last = append(changes, i.changes...), b
		taken = append(taken, uint64(b.GetCount()))
		if im.snapshot == nil && b.GetRevision() > im.position.GetRevision() {
			im.position, moved = &keyspacev1.Position{Incarnation: im.incarnation, Revision: b.GetRevision()}, true
		}
		if i = nil; !b.GetSnapshotEnd() && len(changes) < groupChanges {
			i = im.another()
		}
	}
	if last == nil {
		return broken
	}
	ops := im.plan(changes)
	if im.snapshot == nil && !oneTxn(ops) {
		if err := im.uncheck(ctx); err != nil {
			return err
		}
	}
	var final []kvstore.Op
	if moved || im.snapshot == nil && len(ops) > 0 {
		final = append(final, im.progressOp())
	}
	if err := im.commit(ctx, ops, final); err != nil {
		return err
	}
	if last.GetSnapshotEnd() {
		if err := im.finish(ctx, last.GetRevision()); err != nil {
			return err
		}
	}
	im.caughtUp()
	for _, n := range taken {
		im.st.applied(n)
	}
	return errors.Join(broken, im.send(&federationv1.Frame{Body: &federationv1.Frame_Ack{Ack: &federationv1.Ack{Sequence: last.GetSequence(), Position: im.stored}}}))
}

// plan decides what of the changes has to be written, and keeps the mirror in
// step: should a write fail, this importer ends and the next one reads anew.
func (im *importer) plan(changes []judged) []planned {
	last := make(map[string]int, len(changes)) // a transaction takes a key once
	for i, c := range changes {
		last[c.rel] = i
	}
	var out []planned
	var settled []string
	for i, c := range changes {
		if last[c.rel] != i {
			continue
		}
		if c.err == nil && !c.deleted && !im.mirror.fits(c, im.guard.Limit(c.kind)) {
			c.err = overLimit(c, im.guard)
		}
		old, present := im.mirror.entries[c.rel]
		switch {
		case c.err != nil:
		case c.surplus != nil:
			im.st.refuseRecord(c, c.surplus)
			im.refused++
		default:
			settled = append(settled, c.full)
		}
		switch {
		case c.err != nil:
			im.st.refuseRecord(c, c.err)
			im.refused++
			switch {
			case !present:
			case im.outlives(c, old):
				im.mirror.see(judged{rel: c.rel, kind: old.kind, weight: old.weight})
			default: // what the key said before is not true any more either
				out = append(out, planned{key: c.full, rank: rankOf(old.kind, true), deleted: true})
				im.mirror.drop(c.rel)
			}
		case c.deleted:
			if present {
				out = append(out, planned{key: c.full, rank: rankOf(old.kind, true), deleted: true})
				im.mirror.drop(c.rel)
			}
		default:
			im.mirror.see(c)
			im.heed(c)
			if !present || old.hash != c.hash {
				out = append(out, planned{key: c.full, value: c.value, rank: rankOf(c.kind, false)})
			}
			im.mirror.set(c.rel, entry{c.kind, c.hash, c.weight})
		}
	}
	im.st.settle(settled)
	return out
}

// finish ends a snapshot: what it did not mention goes, then the markers say
// that the copy is complete.
func (im *importer) finish(ctx context.Context, rev int64) error {
	var sweep []planned
	for _, j := range im.mirror.unseen() {
		sweep = append(sweep, planned{key: kvstore.Prefix(kvstore.State, im.peer) + j.rel, rank: rankOf(j.kind, true), deleted: true})
		im.mirror.drop(j.rel)
	}
	if err := im.commit(ctx, sweep, nil); err != nil {
		return err
	}
	reason := shorten(im.snapshot.GetReason())
	repaired := im.damaged
	if im.damaged {
		reason, im.damaged = "our copy was changed by somebody else", false
	}
	// What is changed in it while it is copied is found when the next stream begins:
	// to watch all that is written now would cost as much as writing it.
	im.sentry.start(im.loaded)
	im.snapshot, im.sameGrant = nil, true
	im.position = &keyspacev1.Position{Incarnation: im.incarnation, Revision: rev}
	im.publish() // before "complete", so that who waits for that sees all of it
	// A copy that is whole is noted as such even if the stream ends right now, as
	// when another one takes its place: the next one resumes.
	mctx, cancel := outlasting(ctx, noteWithin)
	defer cancel()
	err := im.mark(mctx, keyspacev1.Synced_STATE_COMPLETE, im.position, func() {
		im.st.snapshotsReceived++
		if im.st.spoilt = ""; repaired {
			im.st.repairs++
		}
		im.st.lastSync = "snapshot (" + reason + ")"
	})
	if err != nil {
		return err
	}
	im.log.Info("snapshot complete", "peer", im.peer, "revision", rev, "keys", len(im.mirror.entries), "swept", len(sweep), "refused", im.refused)
	return nil
}

// outlasting is a context that ends so long after ctx does.
func outlasting(ctx context.Context, by time.Duration) (context.Context, context.CancelFunc) {
	out, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(by, cancel) })
	return out, func() { stop(); cancel() }
}

// idle moves the position on while nothing changes; it is stored only now and
// then, also when it has stood since.
func (im *importer) idle(ctx context.Context, m *keyspacev1.Position) error {
	if im.incarnation == "" || im.snapshot != nil || m.GetIncarnation() != im.incarnation || m.GetRevision() < im.position.GetRevision() {
		return nil
	}
	if m.GetRevision() > im.position.GetRevision() {
		im.position = &keyspacev1.Position{Incarnation: im.incarnation, Revision: m.GetRevision()}
		im.caughtUp()
	}
	if im.stored.GetIncarnation() == im.incarnation && im.stored.GetRevision() >= im.position.GetRevision() || time.Since(im.storedAt) < im.cfg.IdlePersist {
		return nil
	}
	return im.commit(ctx, nil, []kvstore.Op{im.progressOp()})
}

// caughtUp notes once nothing is missing that the peer knew when the stream
// began.
func (im *importer) caughtUp() {
	if im.snapshot == nil && im.position.GetRevision() >= im.target {
		im.st.current()
	}
}

// heed hands on what the peer's own record says of it.
func (im *importer) heed(c judged) {
	rec := &keyspacev1.Cluster{}
	if c.kind != kvstore.KindCluster || proto.Unmarshal(c.value, rec) != nil {
		return
	}
	im.st.do(func() { im.st.notGranted = rec.GetNotGranted() })
	if im.learn != nil {
		im.learn(rec)
	}
}

// recall shows what of the peer's ranges is not granted by the copy that there
// is: the peer says it once.
func (im *importer) recall(ctx context.Context) error {
	key := kvstore.NewKey(kvstore.State, im.peer, kvstore.KindCluster)
	kv, _, err := im.kv.Get(ctx, key.String())
	if err != nil {
		return fmt.Errorf("read the record of %s: %w", im.peer, err)
	}
	rec := &keyspacev1.Cluster{}
	if kv != nil && proto.Unmarshal(kv.Value, rec) != nil {
		rec.Reset() // it is copied again when it changes
	}
	im.st.do(func() { im.st.notGranted = rec.GetNotGranted() })
	return nil
}
