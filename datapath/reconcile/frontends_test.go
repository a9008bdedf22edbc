// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/objects"
	"github.com/hawser-mesh/hawser/loadbalancer/maglev"
)

func newServiceMaps(t *testing.T) *objects.HawserMaps {
	return &objects.HawserMaps{
		Services: testMap(t, "services", 64), ServiceSlots: testMap(t, "service_slots", 256), Backends: testMap(t, "backends", 64),
		ServiceEpochs: testMap(t, "service_epochs", 64), Maglev: testMap(t, "maglev", 64), Affinities: testMap(t, "affinities", 64),
	}
}

// startFrontends is an agent's start with these rows.
func startFrontends(t *testing.T, kernel *objects.HawserMaps, rows map[datapath.FrontendKey]datapath.Frontend) *frontends {
	t.Helper()
	s, err := newFrontends(kernel, maglev.SmallSize, datapath.NewTables().Frontends)
	if err != nil {
		t.Fatal(err)
	}
	s.subscribe()
	t.Cleanup(s.close)
	for k, row := range rows {
		s.table.Set(k, row)
	}
	s.must(t)
	return s
}

func (s *frontends) must(t *testing.T) {
	t.Helper()
	if _, err := s.sync(); err != nil {
		t.Fatal(err)
	}
}

func vipKey(i byte) datapath.FrontendKey {
	return datapath.FrontendKey{Addr: netip.AddrFrom4([4]byte{10, 96, 0, i}), Port: 80, Protocol: 6}
}

func farm(affinity uint32, hosts ...byte) datapath.Frontend {
	f := datapath.Frontend{Service: 1, Affinity: affinity}
	for _, i := range hosts {
		f.Backends = append(f.Backends, datapath.Backend{Addr: netip.AddrFrom4([4]byte{10, 2, 1, i}), Port: 8080, ClusterID: 1})
	}
	return f
}

func (s *frontends) number(k datapath.FrontendKey) uint32 {
	return s.services.have[maps.EncodeFrontendKey(k)].Number
}
func (s *frontends) backend(i byte) uint32 {
	return s.ids.numbers[maps.EncodeBackend(farm(0, i).Backends[0])]
}

// stays has a client stay with a backend, as the programs do.
func (s *frontends) stays(t *testing.T, k datapath.FrontendKey, client, backend uint32) maps.AffinityKey {
	t.Helper()
	key := maps.AffinityKey{Frontend: s.number(k), Client: maps.AddrFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(client)}))}
	if err := s.clients.Put(key, maps.Affinity{Backend: backend}); err != nil {
		t.Fatal(err)
	}
	return key
}

func (s *frontends) forgotten(t *testing.T, what string, k maps.AffinityKey, want bool) {
	t.Helper()
	var v maps.Affinity
	if err := s.clients.Lookup(k, &v); (err != nil) != want {
		t.Errorf("%s: the client is forgotten %v, want %v", what, err != nil, want)
	}
}

// Clients leave a backend that left while no agent was there, though it still
// serves others, and a service that is gone: nobody inherits them with its number.
func TestClientsAreForgotten(t *testing.T) {
	kernel := newServiceMaps(t)
	a, b := vipKey(1), vipKey(2)
	s := startFrontends(t, kernel, map[datapath.FrontendKey]datapath.Frontend{a: farm(60, 1, 2, 3), b: farm(60, 1, 4)})
	blue, green, other := s.stays(t, a, 1, s.backend(1)), s.stays(t, a, 2, s.backend(2)), s.stays(t, b, 1, s.backend(1))
	s = startFrontends(t, kernel, map[datapath.FrontendKey]datapath.Frontend{a: farm(60, 2, 3), b: farm(60, 1, 4)})
	s.forgotten(t, "a backend that left meanwhile", blue, true)
	s.forgotten(t, "a backend that stayed", green, false)
	s.forgotten(t, "another service's", other, false)
	s.table.Delete(b)
	s.must(t)
	s.forgotten(t, "a service that is gone", other, true)
	s.forgotten(t, "a service that stays", green, false)
	s = startFrontends(t, kernel, nil) // a went while no agent was there
	if err := s.repair(true); err != nil {
		t.Fatal(err)
	}
	s.forgotten(t, "a service that went meanwhile", green, true)
	s = startFrontends(t, kernel, map[datapath.FrontendKey]datapath.Frontend{a: farm(60, 2, 3)})
	drained := s.stays(t, a, 3, s.backend(2))
	s.table.Set(a, farm(60, 3, 4))
	s.must(t)
	s.forgotten(t, "a backend that leaves", drained, true)
}

// tableOf are the backends that a service's table names.
func (s *frontends) tableOf(t *testing.T, k datapath.FrontendKey) map[uint32]bool {
	t.Helper()
	var id ebpf.MapID
	if err := s.tables.m.Lookup(s.number(k), &id); err != nil {
		t.Fatal(err)
	}
	inner, err := ebpf.NewMapFromID(id)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = inner.Close() }()
	out := map[uint32]bool{}
	if err := maps.DumpBatches(inner, func(_, b uint32) { out[b] = true }); err != nil {
		t.Fatal(err)
	}
	return out
}

// A kill between slots and table leaves a table that names who left. The next
// start sees it.
func TestTableOfAKilledAgent(t *testing.T) {
	kernel := newServiceMaps(t)
	k := vipKey(1)
	s := startFrontends(t, kernel, map[datapath.FrontendKey]datapath.Frontend{k: farm(0, 1, 2, 3)})
	s.table.Set(k, farm(0, 1, 2))
	if _, err := s.each(s.put, s.drop); err != nil { // killed before the tables
		t.Fatal(err)
	}
	s = startFrontends(t, kernel, map[datapath.FrontendKey]datapath.Frontend{k: farm(0, 1, 2)})
	if got := s.tableOf(t, k); len(got) != 2 || !got[s.backend(1)] || !got[s.backend(2)] {
		t.Errorf("the table names %v, want %d and %d", got, s.backend(1), s.backend(2))
	}
	var was, is ebpf.MapID
	if err := s.tables.m.Lookup(s.number(k), &was); err != nil {
		t.Fatal(err)
	}
	s = startFrontends(t, kernel, map[datapath.FrontendKey]datapath.Frontend{k: farm(0, 1, 2)})
	if err := s.tables.m.Lookup(s.number(k), &is); err != nil || is != was {
		t.Errorf("a table that is right was written again: %v", err)
	}
}
