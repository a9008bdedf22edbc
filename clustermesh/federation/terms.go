// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
)

// terms are what may change of a peer while its stream goes on.
type terms struct {
	endpoints []string
	ages      ages
}

// ages are how long the data of a peer is believed without hearing from it.
type ages struct {
	stale  time.Duration
	expire time.Duration // 0: for ever
}

// termsOf are the terms of a peer's record, where it has none those of the
// cluster.
func termsOf(p *keyspacev1.Peer, cfg *Config) terms {
	t := terms{endpoints: p.GetEndpoints(), ages: ages{stale: cfg.StaleAfter, expire: max(0, cfg.ExpireAfter)}}
	if p.StaleAfter != nil {
		t.ages.stale = time.Duration(p.GetStaleAfter())
	}
	if p.ExpireAfter != nil {
		t.ages.expire = time.Duration(p.GetExpireAfter())
	}
	return t
}

// samePeer compares what a runner is made from, without its terms.
func samePeer(a, b *keyspacev1.Peer) bool {
	if proto.Equal(a, b) { // as most are, of many
		return true
	}
	x, y := proto.CloneOf(a), proto.CloneOf(b)
	for _, p := range []*keyspacev1.Peer{x, y} {
		p.UpdatedAt, p.Endpoints, p.StaleAfter, p.ExpireAfter = 0, nil, nil, nil
		p.TrustBundle, p.Retired = nil, nil  // taken up without a new stream
		p.Declared, p.Declaration = nil, nil // the rest says what they changed
	}
	return proto.Equal(x, y)
}

func (r *runner) setTerms(t terms) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.terms = t
}

func (r *runner) ages() ages {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.terms.ages
}

// learn takes the addresses at which the peer says it can be dialled. From now on
// they are used; the record of the peer follows. A peer that names none, because
// it cannot be dialled, or some that nobody can dial, changes nothing.
func (r *runner) learn(endpoints []string) {
	if len(endpoints) == 0 {
		return
	}
	if err := peering.CheckEndpoints(endpoints); err != nil {
		r.st.refuse(&kvstore.BadRecord{Key: "endpoints of " + r.name(), Reason: reasonEndpoint, Detail: err.Error()})
		return
	}
	r.mu.Lock()
	same := slices.Equal(r.terms.endpoints, endpoints)
	r.terms.endpoints = slices.Clone(endpoints)
	r.mu.Unlock()
	if same {
		return
	}
	r.log.Info("peer can be dialled elsewhere now", "peer", r.name(), "endpoints", endpoints)
	select {
	case <-r.learned: // only the newest counts
	default:
	}
	select {
	case r.learned <- slices.Clone(endpoints):
	default:
	}
}

// remember stores learned endpoints in the peer's record.
func (r *runner) remember(ctx context.Context) error {
	for {
		select {
		case eps := <-r.learned:
			if err := r.store.SetEndpoints(ctx, r.name(), eps); err != nil && ctx.Err() == nil {
				r.log.Warn("new endpoints of the peer not stored; they are learned again with the next stream", "peer", r.name(), "err", err)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
