// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// remoteStream is one stream of a remote.
type remoteStream struct {
	r          *remote
	frames     grpc.BidiStreamingClient[federationv1.Frame, federationv1.Frame]
	room       chan struct{}
	subscribed chan *keyspacev1.Position

	sendMu sync.Mutex

	mu      sync.Mutex
	sent    uint64
	pending []unacked
	cursor  int // changes of the log that are sent
	echo    int64
	echoAt  time.Time
}

// unacked is a batch that is not acknowledged yet.
type unacked struct {
	seq    uint64
	oldest int64 // Unix ns; 0 in a snapshot
	cursor int
}

func (s *remoteStream) send(f *federationv1.Frame) error {
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	return s.frames.Send(f)
}

func (s *remoteStream) run(ctx context.Context, cancel func()) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { defer cancel(); return s.receive() })
	g.Go(func() error { defer cancel(); return s.beat(ctx) })
	g.Go(func() error { defer cancel(); return s.export(ctx) })
	return g.Wait()
}

func (s *remoteStream) receive() error {
	for {
		f, err := s.frames.Recv()
		if err != nil {
			return err
		}
		switch b := f.GetBody().(type) {
		case *federationv1.Frame_Subscribe:
			s.subscribed <- b.Subscribe.GetPosition()
		case *federationv1.Frame_Ack:
			s.acknowledged(b.Ack.GetSequence())
		case *federationv1.Frame_Heartbeat:
			s.mu.Lock()
			s.echo, s.echoAt = b.Heartbeat.GetTime(), time.Now()
			s.mu.Unlock()
		case *federationv1.Frame_Batch:
			err = s.send(&federationv1.Frame{Body: &federationv1.Frame_Ack{Ack: &federationv1.Ack{
				Sequence: b.Batch.GetSequence(), Position: &keyspacev1.Position{Revision: b.Batch.GetRevision()},
			}}})
		}
		if err != nil {
			return err
		}
	}
}

func (s *remoteStream) acknowledged(seq uint64) {
	now := time.Now().UnixNano()
	s.mu.Lock()
	for len(s.pending) > 0 && s.pending[0].seq <= seq {
		p := s.pending[0]
		s.pending = s.pending[1:]
		s.r.mu.Lock()
		if p.oldest != 0 {
			s.r.acks = append(s.r.acks, float64(now-p.oldest)/1e6)
		}
		s.r.stored = max(s.r.stored, p.cursor)
		s.r.mu.Unlock()
	}
	s.mu.Unlock()
	select {
	case s.room <- struct{}{}:
	default:
	}
}

func (s *remoteStream) beat(ctx context.Context) error {
	t := time.NewTicker(beatEvery)
	defer t.Stop()
	for {
		s.mu.Lock()
		h := &federationv1.Heartbeat{Time: time.Now().UnixNano(), EchoTime: s.echo}
		if s.echo != 0 {
			h.EchoHeld = int64(time.Since(s.echoAt))
		}
		if s.cursor >= 0 {
			h.Position = &keyspacev1.Position{Incarnation: madeUpHistory, Revision: s.r.base() + int64(s.cursor)}
		}
		s.mu.Unlock()
		if err := s.send(&federationv1.Frame{Body: &federationv1.Frame_Heartbeat{Heartbeat: h}}); err != nil {
			return err
		}
		select {
		case <-t.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// export serves the other side's wish: from its position, or all.
func (s *remoteStream) export(ctx context.Context) error {
	s.mu.Lock()
	s.cursor = -1 // nothing is promised yet
	s.mu.Unlock()
	var from *keyspacev1.Position
	select {
	case from = <-s.subscribed:
	case <-ctx.Done():
		return nil
	}
	r, mode := s.r, federationv1.Resync_MODE_SNAPSHOT
	cursor, revision := 0, r.base()
	r.mu.Lock()
	if from.GetIncarnation() == madeUpHistory && from.GetRevision() >= r.base() {
		mode, cursor, revision = federationv1.Resync_MODE_RESUME, int(from.GetRevision()-r.base()), from.GetRevision()
		r.carried.Resumes++
	} else {
		r.carried.Snapshots++
	}
	beyond := cursor > len(r.log)
	r.mu.Unlock()
	if beyond {
		return errors.New("asked to resume from what has not happened")
	}
	err := s.send(&federationv1.Frame{Body: &federationv1.Frame_Resync{Resync: &federationv1.Resync{
		Mode: mode, Incarnation: madeUpHistory, Revision: revision, Reason: "first sync",
	}}})
	if mode == federationv1.Resync_MODE_SNAPSHOT {
		for _, b := range r.snapshot {
			if err == nil {
				err = s.transmit(ctx, b, 0, 0)
			}
		}
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.cursor = cursor
	s.mu.Unlock()
	return s.follow(ctx, cursor)
}

// follow sends the log from cursor on.
func (s *remoteStream) follow(ctx context.Context, cursor int) error {
	r := s.r
	for {
		if err := s.awaitRoom(ctx); err != nil {
			return err
		}
		r.mu.Lock()
		news := r.log[cursor:min(len(r.log), cursor+pageChanges)]
		r.mu.Unlock()
		if len(news) == 0 {
			select {
			case <-r.wake:
			case <-ctx.Done():
				return nil
			}
			continue
		}
		b, err := r.changes(news, cursor)
		if err != nil {
			return err
		}
		cursor += len(news)
		if err := s.transmit(ctx, b, news[0].at, cursor); err != nil {
			return err
		}
		s.mu.Lock()
		s.cursor = cursor
		s.mu.Unlock()
	}
}

// changes packs a part of the log that begins at cursor.
func (r *remote) changes(news []change, cursor int) (*federationv1.Batch, error) {
	prefix := len(kvstore.Prefix(kvstore.State, r.world.Name))
	out := make([]*federationv1.Change, len(news))
	for i, c := range news {
		k, m := r.world.ip(c.n, cursor+i, c.at)
		value, err := kvstore.Encode(k, m)
		if err != nil {
			return nil, err
		}
		out[i] = &federationv1.Change{Key: k.String()[prefix:], Value: value, ModRevision: r.base() + int64(cursor+i) + 1}
	}
	b, err := r.batch(out, r.base()+int64(cursor+len(news)))
	if err == nil {
		b.OldestAt = news[0].at
	}
	return b, err
}

func (s *remoteStream) awaitRoom(ctx context.Context) error {
	for {
		s.mu.Lock()
		room := len(s.pending) < sendWindow
		s.mu.Unlock()
		if room {
			return nil
		}
		select {
		case <-s.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *remoteStream) transmit(ctx context.Context, b *federationv1.Batch, oldest int64, cursor int) error {
	if err := s.awaitRoom(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	s.sent++
	seq := s.sent
	s.pending = append(s.pending, unacked{seq: seq, oldest: oldest, cursor: cursor})
	s.mu.Unlock()
	s.r.mu.Lock()
	s.r.carried.Sent += int(b.GetCount())
	s.r.mu.Unlock()
	return s.send(&federationv1.Frame{Body: &federationv1.Frame_Batch{Batch: &federationv1.Batch{
		Sequence: seq, ChangesZstd: b.GetChangesZstd(), Revision: b.GetRevision(), Snapshot: b.GetSnapshot(),
		SnapshotEnd: b.GetSnapshotEnd(), Count: b.GetCount(), OldestAt: b.GetOldestAt(),
	}}})
}
