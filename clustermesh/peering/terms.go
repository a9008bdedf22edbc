// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore/cas"
)

const (
	maxEndpoints = 16
	maxHost      = 253 // of a DNS name
)

// CheckEndpoints says what is wrong with addresses at which an API server is to
// be dialled, all problems joined.
func CheckEndpoints(endpoints []string) error {
	var errs []error
	if len(endpoints) > maxEndpoints {
		return fmt.Errorf("%d endpoints; at most %d are allowed", len(endpoints), maxEndpoints)
	}
	for _, ep := range endpoints {
		if strings.ContainsFunc(ep, func(r rune) bool { return r <= ' ' || r > '~' }) {
			errs = append(errs, fmt.Errorf("endpoint %.300q has blanks, or characters beyond ASCII", ep))
			continue
		}
		host, port, err := net.SplitHostPort(ep)
		if err == nil && (host == "" || len(host) > maxHost) {
			err = errors.New("it has no host")
		}
		if n, perr := strconv.ParseUint(port, 10, 16); err == nil && (perr != nil || n == 0) {
			err = errors.New("it has no port")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("endpoint %.300q is not HOST:PORT: %w", ep, err))
		}
	}
	return errors.Join(errs...)
}

// Ages are how long the data of a peer is believed without hearing from it. Nil
// leaves what is, a negative one returns to the cluster's default.
type Ages struct {
	Stale  *time.Duration // past it the data is the last resort; above 0
	Expire *time.Duration // past it it is not believed; 0: never
}

// Validate says what is wrong.
func (a Ages) Validate() error {
	if a.Stale != nil && *a.Stale == 0 {
		return errors.New("stale after 0: it must be more; to withdraw a peer's services use its expiry")
	}
	return nil
}

// SetAges changes how long the data of a peer is believed.
func (s *Store) SetAges(ctx context.Context, name string, a Ages) error {
	err := a.Validate()
	var order error
	if err == nil {
		err = s.change(ctx, name, func(p *keyspacev1.Peer) bool {
			set := func(field **int64, d *time.Duration) {
				switch {
				case d == nil:
				case *d < 0:
					*field = nil
				default:
					*field = proto.Int64(int64(*d))
				}
			}
			set(&p.StaleAfter, a.Stale)
			set(&p.ExpireAfter, a.Expire)
			order = nil
			if p.StaleAfter != nil && p.GetExpireAfter() > 0 && p.GetStaleAfter() > p.GetExpireAfter() {
				order = fmt.Errorf("its data would expire after %s, before it is stale after %s: give a shorter --stale-after or a longer --expire-after",
					time.Duration(p.GetExpireAfter()), time.Duration(p.GetStaleAfter()))
			}
			return order == nil
		})
	}
	err = errors.Join(err, order)
	if err != nil {
		return fmt.Errorf("set peer %q: %w", name, err)
	}
	return nil
}

// SetEndpoints stores where a peer is dialled from now on.
func (s *Store) SetEndpoints(ctx context.Context, name string, endpoints []string) error {
	err := CheckEndpoints(endpoints)
	if err == nil {
		err = s.change(ctx, name, func(p *keyspacev1.Peer) bool {
			same := slices.Equal(p.GetEndpoints(), endpoints)
			p.Endpoints = endpoints
			return !same
		})
	}
	if err != nil {
		return fmt.Errorf("set endpoints of peer %q: %w", name, err)
	}
	return nil
}

// change rewrites the record of a confirmed or pending peer if edit says so.
func (s *Store) change(ctx context.Context, name string, edit func(*keyspacev1.Peer) bool) error {
	return cas.Retry(ctx, func() error {
		p, err := s.peer(ctx, name)
		if err != nil {
			return err
		}
		if p.Rev == 0 || p.Msg.GetState() == keyspacev1.Peer_STATE_LEAVING {
			return fmt.Errorf("%w; peers are listed by: hawser mesh list", ErrNoPeer)
		}
		if !edit(p.Msg) {
			return nil
		}
		return s.commit(ctx, s.putPeer(p.Msg, p.Rev))
	})
}
