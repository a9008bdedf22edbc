// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sort"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// What a key's difference can be.
const (
	diffMissing = "missing here"
	diffExtra   = "extra here"
	diffDiffers = "differs"
)

// Diff implements federationv1.FederationServer: hashes of state/<own>/ below a
// prefix, all at one revision.
func (m *Manager) Diff(r *federationv1.DiffRequest, s grpc.ServerStreamingServer[federationv1.DiffPage]) error {
	if _, _, err := m.caller(s.Context()); err != nil {
		return err
	}
	base := kvstore.Prefix(kvstore.State, m.own())
	after, rev := "", int64(0)
	for {
		page, err := m.kv.List(s.Context(), base+r.GetPrefix(), after, 1000, rev)
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

// DiffPeer compares our mirror of the peer with its origin, below a prefix of
// state/<peer>/ (empty: all of it). It needs a connection from here to the peer.
// Changes in flight show as differences; ask again.
func (m *Manager) DiffPeer(ctx context.Context, peer, prefix string) (*hawserv1.MeshDiffResponse, error) {
	r := m.runner(peer)
	if r == nil {
		return nil, fmt.Errorf("compare with %q: it is not a confirmed peer", peer)
	}
	origin, err := m.originHashes(ctx, r, prefix)
	if err != nil {
		return nil, fmt.Errorf("compare with %q: %w", peer, err)
	}
	base := kvstore.Prefix(kvstore.State, peer)
	out := &hawserv1.MeshDiffResponse{}
	add := func(key, what string) {
		out.Rows = append(out.Rows, &hawserv1.DiffRow{Key: base + key, Difference: what})
	}
	after, rev := "", int64(0)
	for {
		page, err := m.kv.List(ctx, base+prefix, after, 1000, rev)
		if err != nil {
			return nil, fmt.Errorf("compare with %q: %w", peer, err)
		}
		rev = page.Revision
		for _, kv := range page.KVs {
			after = kv.Key
			key := kv.Key[len(base):]
			want, ok := origin[key]
			delete(origin, key)
			out.Compared++
			switch {
			case !ok:
				add(key, diffExtra)
			case want != sha256.Sum256(kv.Value):
				add(key, diffDiffers)
			}
		}
		if !page.More {
			break
		}
	}
	for key := range origin {
		out.Compared++
		add(key, diffMissing)
	}
	sort.Slice(out.Rows, func(i, j int) bool { return out.Rows[i].GetKey() < out.Rows[j].GetKey() })
	return out, nil
}

func (m *Manager) originHashes(ctx context.Context, r *runner, prefix string) (map[string][32]byte, error) {
	var errs []error
	for _, ep := range r.peer.GetEndpoints() {
		cc, c, err := dialPeer(ctx, m.trust, r.name(), ep)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		defer c.Close()
		defer cc.Close()
		s, err := federationv1.NewFederationClient(cc).Diff(ctx, &federationv1.DiffRequest{Prefix: prefix})
		if err != nil {
			return nil, err
		}
		out := map[string][32]byte{}
		for {
			page, err := s.Recv()
			if errors.Is(err, io.EOF) {
				return out, nil
			}
			if err != nil {
				return nil, err
			}
			for _, e := range page.GetEntries() {
				if len(e.GetValueSha256()) == sha256.Size {
					out[e.GetKey()] = [32]byte(e.GetValueSha256())
				}
			}
		}
	}
	return nil, fmt.Errorf("it cannot be reached from here; ask on its side: %w", errors.Join(errs...))
}
