// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// UnreadableError says that a peer's record is there and cannot be read.
type UnreadableError struct {
	Key string
	Err error
}

func (e *UnreadableError) Error() string {
	return fmt.Sprintf("the peer's record %s cannot be read (%v); %s", e.Key, e.Err, e.Fix())
}

func (e *UnreadableError) Unwrap() error { return e.Err }

// Peer is the peer's name, by the key.
func (e *UnreadableError) Peer() string {
	k, err := kvstore.ParseKey(e.Key)
	if err != nil || len(k.Names) == 0 {
		return e.Key
	}
	return k.Names[0]
}

// Fix says what to do.
func (e *UnreadableError) Fix() string {
	return fmt.Sprintf("restore a backup, or remove the record (hawser kvstore del %s --write), leave on the other side, and join again",
		strings.TrimPrefix(e.Key, kvstore.Root))
}

// Unreadable are the records that an error of Peers is about, by peer.
func Unreadable(err error) map[string]*UnreadableError {
	out := map[string]*UnreadableError{}
	if one, ok := err.(*UnreadableError); ok { //nolint:errorlint // looks into joined errors itself
		out[one.Peer()] = one
	} else if many, ok := err.(interface{ Unwrap() []error }); ok { //nolint:errorlint // as above
		for _, e := range many.Unwrap() {
			maps.Copy(out, Unreadable(e))
		}
	}
	return out
}

// Known lists all peers. In place of a record that cannot be read there is what
// is known of that peer without it: its name, and from what it has published here
// its number and ranges. That is less than it may have been granted, but all that
// it uses: who gets a range beside it takes nothing from it. bad are those peers.
func (s *Store) Known(ctx context.Context) (peers []*keyspacev1.Peer, bad map[string]*UnreadableError, err error) {
	peers, rev, err := s.Peers(ctx)
	if rev == 0 {
		return nil, nil, err
	}
	bad = Unreadable(err)
	for _, name := range slices.Sorted(maps.Keys(bad)) {
		p, err := s.published(ctx, name)
		if err != nil {
			return nil, nil, err
		}
		peers = append(peers, p)
	}
	return peers, bad, nil
}

// published is a peer as the mirror of its keys shows it.
func (s *Store) published(ctx context.Context, name string) (*keyspacev1.Peer, error) {
	p := &keyspacev1.Peer{Name: name, State: keyspacev1.Peer_STATE_CONFIRMED, Grant: &keyspacev1.Grant{}}
	pods, nodes := map[string]bool{}, map[string]bool{}
	note := func(in map[string]bool, texts ...string) {
		for _, t := range texts {
			if t != "" {
				in[t] = true
			}
		}
	}
	for _, kind := range []kvstore.Kind{kvstore.KindCluster, kvstore.KindVTEP, kvstore.KindNode} {
		err := s.eachPublished(ctx, name, kind, func(m proto.Message) {
			switch r := m.(type) {
			case *keyspacev1.Cluster:
				p.ClusterId = r.GetId()
				note(pods, r.GetPodCidrs()...)
				note(nodes, r.GetNodeCidrs()...)
			case *keyspacev1.VTEP:
				note(pods, r.GetPrefix())
				note(nodes, single(r.GetTunnelAddress()))
			case *keyspacev1.Node:
				note(pods, r.GetPodCidrs()...)
				note(nodes, single(r.GetTunnelAddress()))
				for _, a := range r.GetAddresses() {
					note(nodes, single(a.GetIp()))
				}
			}
		})
		if err != nil {
			return nil, fmt.Errorf("what peer %s has published: %w", name, err)
		}
	}
	p.Grant.PodCidrs, p.Grant.NodeCidrs = slices.Sorted(maps.Keys(pods)), slices.Sorted(maps.Keys(nodes))
	return p, nil
}

// single is the prefix of one address, "" if it is none.
func single(addr string) string {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return ""
	}
	return netip.PrefixFrom(a, a.BitLen()).String()
}

// eachPublished calls fn for the records of a kind that a peer has here and that
// can be read.
func (s *Store) eachPublished(ctx context.Context, peer string, kind kvstore.Kind, fn func(proto.Message)) error {
	take := func(kv kvstore.KV) {
		if k, err := kvstore.ParseKey(kv.Key); err == nil {
			if m, err := kvstore.Decode(k, kv.Value); err == nil {
				fn(m)
			}
		}
	}
	if kind == kvstore.KindCluster {
		kv, _, err := s.kv.Get(ctx, kvstore.NewKey(kvstore.State, peer, kind).String())
		if err == nil && kv != nil {
			take(*kv)
		}
		return err
	}
	after, rev := "", int64(0)
	for {
		page, err := s.kv.List(ctx, kvstore.KindPrefix(kvstore.State, peer, kind), after, 500, rev)
		if err != nil {
			return err
		}
		rev = page.Revision
		for _, kv := range page.KVs {
			take(kv)
			after = kv.Key
		}
		if !page.More {
			return nil
		}
	}
}

// checkUnreadable tells of records that cannot be read: what they say of the
// candidate itself cannot be asked, so it is refused; that of another peer only
// leaves open what else that one was granted.
func checkUnreadable(f *findings, s Side, name string) {
	for _, peer := range slices.Sorted(maps.Keys(s.Unreadable)) {
		e := s.Unreadable[peer]
		if peer == name {
			f.add(true, "unreadable", "there is a record of a peer of this name, which cannot be read", e.Fix())
			continue
		}
		f.add(false, "unreadable", fmt.Sprintf("the record of peer %q cannot be read: of its ranges only those that it uses here are known, and what else it was granted of this cluster's it loses", peer), e.Fix())
	}
}
