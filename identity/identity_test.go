// SPDX-License-Identifier: Apache-2.0

package identity_test

import (
	"testing"

	"github.com/hawser-mesh/hawser/identity"
)

func TestSpaceDividesTheWire(t *testing.T) {
	for bits, want := range map[uint32]struct{ clusters, numbers uint32 }{
		8: {255, 1 << 16}, 9: {511, 1 << 15}, 10: {1023, 1 << 14},
	} {
		s, err := identity.NewSpace(bits)
		if err != nil || s.ClusterBits() != bits || s.MaxCluster() != want.clusters {
			t.Fatalf("%d bits: %+v, %v, %d clusters", bits, s, err, s.MaxCluster())
		}
		before := identity.Number(0)
		for id := uint32(1); id <= s.MaxCluster(); id++ {
			first, last := s.Range(id)
			if first <= before || first <= identity.MaxReserved || last.IsLocal() || uint32(last-first)+1 != want.numbers {
				t.Fatalf("%d bits: cluster %d has %d-%d after %d", bits, id, first, last, before)
			}
			for _, n := range []identity.Number{first, last} {
				if got, ok := s.Cluster(n); !ok || got != id {
					t.Fatalf("%d bits: %d belongs to %d, %v; want %d", bits, n, got, ok, id)
				}
			}
			before = last
		}
		if before != identity.LocalBase-1 {
			t.Errorf("%d bits: the last cluster ends at %d", bits, before)
		}
	}
	for _, bits := range []uint32{0, 7, 11, 24} {
		if _, err := identity.NewSpace(bits); err == nil {
			t.Errorf("%d bits are accepted", bits)
		}
	}
}

func TestNumbersOfNoCluster(t *testing.T) {
	s, err := identity.NewSpace(10)
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []identity.Number{0, identity.Host, identity.MaxReserved, 1<<14 - 1, identity.LocalBase} {
		if id, ok := s.Cluster(n); ok {
			t.Errorf("%d belongs to cluster %d", n, id)
		}
	}
}
