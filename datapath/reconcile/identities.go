// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"fmt"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/objects"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/internal/table"
)

// identities writes whose labels the node knows: packets of others are dropped.
// A rule set that allows much and denies some has an entry for each identity that
// it denies. So an identity becomes known only after its entries are there, and
// not at all while a rule set lacks any.
type identities struct {
	feed[identity.Number, datapath.Identity]
	known   *mirror[uint32, uint32]
	lagging func() bool // of the rule sets
}

func newIdentities(kernel *objects.HawserMaps, t *table.Table[identity.Number, datapath.Identity], lagging func() bool) (*identities, error) {
	known, err := newMirror[uint32, uint32]("identities", kernel.Identities)
	return &identities{feed: newFeed(t), known: known, lagging: lagging}, err
}

// errLagging is why what is new is held back.
var errLagging = errors.New("a rule set could not be brought up to date, so what is new is unknown and dropped by endpoints with a policy")

func (s *identities) sync() (uint64, error) {
	held := 0
	revision, err := s.each(func(n identity.Number, _ *datapath.Identity, row datapath.Identity) error {
		if _, ok := s.known.have[uint32(n)]; !ok && !s.vouch(n) {
			held++
			return errLagging
		}
		_, err := s.known.set(uint32(n), row.ClusterID)
		return err
	}, func(n identity.Number, _ datapath.Identity) error {
		_, err := s.known.del(uint32(n))
		return err
	})
	if held > 0 {
		return revision, fmt.Errorf("%d identities: %w", held, err)
	}
	return revision, err
}

// vouch reports whether the rule sets of the kernel know what an identity may, or
// did so when it became known.
func (s *identities) vouch(n identity.Number) bool {
	if _, reserved := n.Reserved(); reserved || !s.lagging() {
		return true
	}
	_, ok := s.known.have[uint32(n)]
	return ok
}

// forget deletes the identities that are gone by now, also those that went after
// the table was taken.
func (s *identities) forget() error {
	dirty, _ := s.changes.Take()
	var errs []error
	forget := func(n identity.Number) {
		if _, ok := s.table.Get(n); ok {
			return
		}
		if s.taken != nil {
			delete(s.taken.rows, n)
		}
		_, err := s.known.del(uint32(n))
		errs = append(errs, err)
	}
	for n := range dirty {
		s.changes.Requeue(n)
		forget(n)
	}
	if s.taken != nil {
		for _, n := range s.taken.gone {
			forget(n)
		}
	}
	return errors.Join(errs...)
}

func (s *identities) repair(prune bool) error { return s.known.repair(prune, func(uint32) {}) }
