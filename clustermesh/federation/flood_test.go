// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// floodOf is how many services a peer publishes that may publish 10,000.
const floodOf = 1_000_000

// A peer that publishes a million services has what its grant allows, and costs
// nobody else anything: a third cluster's records come and go, and what is kept of
// those that are refused does not grow with them.
func TestAMillionServices(t *testing.T) {
	hub := newCluster(t, 1, small(8))
	undisturbed := bystander(t, hub)
	p := hub.admit(2, 8)
	p.connect()
	p.first()
	limit := hub.peer(p.name).GetGrant().GetMaxServices()
	if limit == 0 || limit*10 > floodOf {
		t.Fatalf("granted are %d services", limit)
	}
	before := heap()
	const each = 1000
	for from := 0; from < floodOf; from += each {
		changes := make([]*federationv1.Change, each)
		for n := range changes {
			name := fmt.Sprintf("s%d", from+n)
			changes[n] = p.record(kvstore.NewKey(kvstore.State, p.name, kvstore.KindService, "demo", name),
				&keyspacev1.Service{Namespace: "demo", Name: name, Ports: []*keyspacev1.ServicePort{{Port: 80}}})
		}
		p.batch(int64(11+from), false, changes...)
		if from%(floodOf/4) == 0 {
			undisturbed()
		}
	}
	// Behind them, another kind comes through.
	p.batch(int64(11+floodOf), false, p.ip(2))
	other := kvstore.Prefix(kvstore.State, p.name) + p.ip(2).GetKey()
	eventually(t, "an address behind the services", func() bool { return hub.get(other) != nil })
	undisturbed()
	s := p.status()
	if s.GetRefused()["limit"] != floodOf-limit || s.GetKeysByKind()[string(kvstore.KindService)] != limit {
		t.Errorf("refused %v, taken %v", s.GetRefused(), s.GetKeysByKind())
	}
	if n := len(s.GetLastRefused()); n == 0 || n > keptRefusals || s.GetRefusedNow() != maxStanding {
		t.Errorf("%d refusals are listed, %d are known to stand", n, s.GetRefusedNow())
	}
	if line := s.GetLastRefused()[0]; !strings.Contains(line, "/services/") || !strings.Contains(line, fmt.Sprintf("more than the granted %d", limit)) {
		t.Errorf("told is: %s", line)
	}
	const room = 64 << 20 // 64 bytes for each of them would already be as much
	if after := heap(); after > before+room {
		t.Errorf("%d MiB more are held", (after-before)>>20)
	} else {
		t.Logf("heap before %d MiB, after %d MiB", before>>20, after>>20)
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A peer that changes all its records as fast as they are taken has a few
// transactions under way, as every peer: what a third cluster and ours change
// meanwhile comes, again and again, before the peer is done.
func TestAPeerThatChurnsHoldsNobodyUp(t *testing.T) {
	hub := newCluster(t, 1, small(8))
	undisturbed := bystander(t, hub)
	p := hub.admit(2, 8)
	p.connect()
	p.first()
	const keys, most = 1000, 10_000
	stop, done := make(chan struct{}), make(chan struct{})
	var sent atomic.Int64
	go func() {
		defer close(done)
		for round := range most {
			select {
			case <-stop:
				return
			default:
			}
			changes := make([]*federationv1.Change, keys)
			for n := range changes {
				name := fmt.Sprintf("s%d", n)
				changes[n] = p.record(kvstore.NewKey(kvstore.State, p.name, kvstore.KindService, "demo", name),
					&keyspacev1.Service{Namespace: "demo", Name: name, Ports: []*keyspacev1.ServicePort{{Port: uint32(1 + round)}}})
			}
			p.batch(int64(11+round), false, changes...)
			sent.Add(1)
		}
	}()
	for range 10 {
		at := sent.Load()
		undisturbed()
		eventually(t, "the peer churns on", func() bool { return sent.Load() > at })
	}
	select {
	case <-done:
		t.Error("the peer was done before the others: that shows nothing")
	default:
	}
	close(stop)
	<-done
	undisturbed()
	t.Logf("%d records sent meanwhile", keys*sent.Load())
}
