// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/internal/plain"
	"github.com/hawser-mesh/hawser/kvstore"
)

// What a key's difference can be.
const (
	diffMissing = "missing here"
	diffExtra   = "extra here"
	diffDiffers = "differs"
)

const (
	diffPage    = 1000 // keys read at a time
	diffRows    = 1000 // of an answer, by default
	maxDiffRows = 10_000
)

// Diff implements federationv1.FederationServer: hashes of state/<own>/ below a
// prefix, in the order of the keys, all at one revision.
func (m *Manager) Diff(r *federationv1.DiffRequest, s grpc.ServerStreamingServer[federationv1.DiffPage]) error {
	caller, _, err := m.caller(s.Context())
	if err != nil {
		return err
	}
	if !peering.MayDiff(caller.peer.GetGrant()) {
		return status.Errorf(codes.PermissionDenied, "cluster %s does not grant %s to compare its copy; there: hawser mesh grant %s --diff", m.own(), caller.name(), caller.name())
	}
	base := kvstore.Prefix(kvstore.State, m.own())
	after, rev := "", int64(0)
	if r.GetAfter() != "" {
		after = base + r.GetAfter()
	}
	for {
		page, err := m.kv.List(s.Context(), base+r.GetPrefix(), after, diffPage, rev)
		if err != nil {
			return status.Errorf(codes.Unavailable, "list our keys: %v", err)
		}
		rev = page.Revision
		out := &federationv1.DiffPage{Revision: rev}
		for _, kv := range page.KVs {
			after = kv.Key
			sum := sha256.Sum256(kv.Value)
			out.Entries = append(out.Entries, &federationv1.DiffEntry{Key: kv.Key[len(base):], ValueSha256: sum[:], ModRevision: kv.ModRevision})
		}
		if err := s.Send(out); err != nil {
			return err
		}
		if !page.More {
			return nil
		}
	}
}

// DiffRange is what of a mirror is compared.
type DiffRange struct {
	Prefix string // of state/<peer>/; empty: all of it
	After  string // only keys behind this one, given like Prefix
	Rows   int    // most rows of the answer; 0 means 1,000
}

// DiffPeer compares our mirror of the peer with its origin. Both are read in the
// order of their keys, a page of each at a time; when the answer is full its Next
// says where to go on. It needs a connection from here to the peer. Changes in
// flight show as differences; ask again.
func (m *Manager) DiffPeer(ctx context.Context, peer string, r DiffRange) (*hawserv1.MeshDiffResponse, error) {
	run := m.runner(peer)
	if run == nil {
		return nil, fmt.Errorf("compare with %q: %w that is confirmed; peers are listed by: hawser mesh list", peer, peering.ErrNoPeer)
	}
	if r.Rows <= 0 {
		r.Rows = diffRows
	}
	r.Rows = min(r.Rows, maxDiffRows)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	origin, hangUp, err := m.openOrigin(ctx, run, r)
	if err != nil {
		return nil, fmt.Errorf("compare with %q: %w", peer, err)
	}
	defer hangUp()
	out, err := compare(ctx, newMirrorKeys(m.kv, peer, r), origin, kvstore.Prefix(kvstore.State, peer), r.Rows)
	if err != nil {
		return nil, fmt.Errorf("compare with %q: %w", peer, err)
	}
	return out, nil
}

// hashed is a key below state/<peer>/ and its value's hash.
type hashed struct {
	key string
	sum [sha256.Size]byte
}

// hashes gives keys in ascending order; ok is false behind the last.
type hashes interface {
	next(ctx context.Context) (h hashed, ok bool, err error)
}

// compare merges two ordered lists into at most rows differences.
func compare(ctx context.Context, ours, theirs hashes, base string, rows int) (*hawserv1.MeshDiffResponse, error) {
	out := &hawserv1.MeshDiffResponse{}
	o, oursLeft, err := ours.next(ctx)
	if err != nil {
		return nil, err
	}
	t, theirsLeft, err := theirs.next(ctx)
	for err == nil && (oursLeft || theirsLeft) {
		what, key := "", o.key
		order := strings.Compare(o.key, t.key)
		switch {
		case !theirsLeft || oursLeft && order < 0:
			what = diffExtra
			o, oursLeft, err = ours.next(ctx)
		case !oursLeft || order > 0:
			what, key = diffMissing, t.key
			t, theirsLeft, err = theirs.next(ctx)
		default:
			if o.sum != t.sum {
				what = diffDiffers
			}
			if o, oursLeft, err = ours.next(ctx); err == nil {
				t, theirsLeft, err = theirs.next(ctx)
			}
		}
		out.Compared++
		if what != "" {
			out.Rows = append(out.Rows, &hawserv1.DiffRow{Key: base + key, Difference: what})
		}
		if len(out.Rows) == rows && (oursLeft || theirsLeft) {
			out.Next = key
			break
		}
	}
	return out, err
}

// mirrorKeys are our keys of a peer.
type mirrorKeys struct {
	kv           kvstore.Client
	base, prefix string
	after        string
	rev          int64
	page         []kvstore.KV
	more         bool
}

func newMirrorKeys(kv kvstore.Client, peer string, r DiffRange) *mirrorKeys {
	k := &mirrorKeys{kv: kv, base: kvstore.Prefix(kvstore.State, peer), prefix: r.Prefix, more: true}
	if r.After != "" {
		k.after = k.base + r.After
	}
	return k
}

func (k *mirrorKeys) next(ctx context.Context) (hashed, bool, error) {
	for len(k.page) == 0 {
		if !k.more {
			return hashed{}, false, nil
		}
		page, err := k.kv.List(ctx, k.base+k.prefix, k.after, diffPage, k.rev)
		if err != nil {
			return hashed{}, false, err
		}
		k.page, k.more, k.rev = page.KVs, page.More, page.Revision
	}
	kv := k.page[0]
	k.page, k.after = k.page[1:], kv.Key
	return hashed{kv.Key[len(k.base):], sha256.Sum256(kv.Value)}, true, nil
}

// originKeys are the peer's own keys, as it tells them.
type originKeys struct {
	stream grpc.ServerStreamingClient[federationv1.DiffPage]
	r      DiffRange
	page   []*federationv1.DiffEntry
	last   string
}

func (k *originKeys) next(ctx context.Context) (hashed, bool, error) {
	for {
		for len(k.page) == 0 {
			page, err := k.stream.Recv()
			if errors.Is(err, io.EOF) {
				return hashed{}, false, nil
			}
			if err != nil {
				return hashed{}, false, err
			}
			k.page = page.GetEntries()
		}
		e := k.page[0]
		k.page = k.page[1:]
		switch {
		case len(e.GetValueSha256()) != sha256.Size || !strings.HasPrefix(e.GetKey(), k.r.Prefix) || plain.Text(e.GetKey(), maxKeyBytes) != e.GetKey():
			return hashed{}, false, fmt.Errorf("it answers with %q, which was not asked for", shorten(e.GetKey()))
		case k.last != "" && e.GetKey() <= k.last:
			return hashed{}, false, fmt.Errorf("its keys are not in order: %q after %q", shorten(e.GetKey()), k.last)
		}
		k.last = e.GetKey()
		if e.GetKey() > k.r.After { // an earlier version begins at the first
			return hashed{e.GetKey(), [sha256.Size]byte(e.GetValueSha256())}, true, nil
		}
	}
}

// openOrigin asks the peer for its keys, at the first endpoint that answers.
func (m *Manager) openOrigin(ctx context.Context, r *runner, what DiffRange) (*originKeys, func(), error) {
	var errs []error
	for _, ep := range r.endpoints() {
		cc, c, err := dialPeer(ctx, m.trust, r.name(), ep)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		hangUp := func() { cc.Close(); c.Close() }
		s, err := federationv1.NewFederationClient(cc).Diff(ctx, &federationv1.DiffRequest{Prefix: what.Prefix, After: what.After})
		if err != nil {
			hangUp()
			return nil, nil, err
		}
		return &originKeys{stream: s, r: what}, hangUp, nil
	}
	return nil, nil, fmt.Errorf("it cannot be reached from here; ask on its side: %w", errors.Join(errs...))
}
