// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/federation"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

// A cluster as large as the one that others were measured with.
const (
	fedNodes      = 1000
	fedIdentities = 5000
	fedIPs        = 50000
	fedServices   = 1000
	fedKeys       = fedNodes + fedIdentities + fedIPs + fedServices

	steadyRate    = 1000 // writes a second
	steadySeconds = 3
)

// side is a cluster in this process: its etcd and what federates it.
type side struct {
	name string
	id   uint32
	etcd *etcdtest.Etcd
	kv   *etcd.Client
	mesh *federation.Manager

	leaf tls.Certificate
}

// Certificate implements peering.Credentials.
func (s *side) Certificate() (*tls.Certificate, error) { return &s.leaf, nil }

// CA implements peering.Credentials.
func (s *side) CA() []*x509.Certificate { return []*x509.Certificate{s.etcd.CA.Certificate()} }

func newSide(t *testing.T, id uint32) *side {
	t.Helper()
	e := etcdtest.Start(t)
	s := &side{name: e.Cluster, id: id, etcd: e, kv: e.APIServer(t)}
	leaf, err := e.CA.Issue(pki.Request{Role: pki.RoleAPIServer}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s.leaf = leaf.TLS()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.mesh, err = federation.New(federation.Config{Replica: "a", Cluster: &keyspacev1.Cluster{
		Name: s.name, Id: id, Endpoints: []string{lis.Addr().String()}, Version: "perf",
		PodCidrs: []string{fmt.Sprintf("10.%d.0.0/16", id)}, NodeCidrs: []string{fmt.Sprintf("192.168.%d.0/20", 16*id)},
		ServiceCidrs: []string{fmt.Sprintf("172.%d.0.0/16", 16+id)},
		Mesh:         &keyspacev1.MeshParameters{ClusterBits: 8, TunnelProtocol: "vxlan", TunnelPort: 8472, Encryption: "off"},
	}}, federation.Deps{KV: s.kv, Creds: s, Log: slog.New(slog.DiscardHandler), Listener: lis})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.mesh.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return s
}

// fill writes a whole cluster's records and returns what that took.
func (s *side) fill(t *testing.T) time.Duration {
	t.Helper()
	start := time.Now()
	var ops []kvstore.Op
	flush := func() {
		if _, err := s.kv.Txn(t.Context(), nil, ops, nil); err != nil {
			t.Fatal(err)
		}
		ops = nil
	}
	put := func(k kvstore.Key, m proto.Message) {
		value, err := kvstore.Encode(k, m)
		if err != nil {
			t.Fatal(err)
		}
		if ops = append(ops, kvstore.Put(k.String(), value)); len(ops) == kvstore.MaxTxnOps {
			flush()
		}
	}
	for n := range fedIdentities {
		put(identityRecord(s.name, s.id, n))
	}
	for n := range fedNodes {
		put(s.nodeRecord(n))
	}
	for n := range fedIPs {
		put(ipRecord(s.name, s.id, n, s.nodeAddr(n%fedNodes)))
	}
	for n := range fedServices {
		put(s.serviceRecord(n))
	}
	flush()
	return time.Since(start)
}

func (s *side) nodeAddr(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{192, 168, byte(16*s.id) + byte(n/250), byte(n%250 + 1)})
}

func (s *side) nodeRecord(n int) (kvstore.Key, *keyspacev1.Node) {
	name := "node-" + strconv.Itoa(n)
	return kvstore.NewKey(kvstore.State, s.name, kvstore.KindNode, name), &keyspacev1.Node{
		Name: name, Cluster: s.name, TunnelAddress: s.nodeAddr(n).String(), Mtu: 1500,
		Addresses: []*keyspacev1.NodeAddress{{Type: keyspacev1.NodeAddress_TYPE_INTERNAL, Ip: s.nodeAddr(n).String()}},
	}
}

func (s *side) serviceRecord(n int) (kvstore.Key, *keyspacev1.Service) {
	ns, name := "ns-"+strconv.Itoa(n%20), "svc-"+strconv.Itoa(n)
	return kvstore.NewKey(kvstore.State, s.name, kvstore.KindService, ns, name), &keyspacev1.Service{
		Namespace: ns, Name: name, Id: identityNumber(s.id, n), Global: true, Shared: true, Type: "ClusterIP",
		Ports:    []*keyspacev1.ServicePort{{Name: "http", Protocol: keyspacev1.Protocol_PROTOCOL_TCP, Port: 80, Target: "8080"}},
		Selector: map[string]string{"app": name},
	}
}

// TestPerfFederation measures the first sync of a large cluster and how soon
// single changes arrive, between two clusters whose etcds and API servers share
// this process: all of them, and the writer, have the same CPUs.
func TestPerfFederation(t *testing.T) {
	r := newReport(t, "federation", fmt.Sprintf("two clusters in one process, embedded etcds in memory (no fsync); %d keys: %d nodes, %d identities, %d ips, %d services",
		fedKeys, fedNodes, fedIdentities, fedIPs, fedServices))
	for range min(flags.rounds, 3) {
		t.Run("round", func(t *testing.T) { federate(t, r) })
	}
	r.finish(t)
}

func federate(t *testing.T, r *report) {
	from, to := newSide(t, 1), newSide(t, 2)
	written := from.fill(t)
	r.append("writing the keys at the source, 128 a transaction", "keys/s", "the limit to come near", fedKeys/written.Seconds())
	token, err := from.mesh.Invite(t.Context(), to.name, 0)
	if err != nil {
		t.Fatal(err)
	}
	start, cpu := time.Now(), ownCPU()
	if res, err := to.mesh.Join(t.Context(), token.String(), false); err != nil || !res.Joined {
		t.Fatalf("join: %v %v", err, res)
	}
	prefix := kvstore.Prefix(kvstore.State, from.name)
	last := kvstore.KindPrefix(kvstore.State, from.name, kvstore.KindService)
	etcdtest.Eventually(t, 4*within, "all keys are mirrored", func() bool {
		time.Sleep(10 * time.Millisecond) // the question costs what it measures
		p, err := to.kv.List(t.Context(), last, "", fedServices+1, 0)
		return err == nil && len(p.KVs) == fedServices && to.count(t, prefix) >= fedKeys
	})
	took := time.Since(start)
	r.append("first sync, time", "s", "", took.Seconds())
	r.append("first sync, rate", "keys/s", "", fedKeys/took.Seconds())
	r.append("first sync, CPU of both clusters", "s", "", ownCPU()-cpu)
	for _, rate := range []int{80, steadyRate} {
		lat := steady(t, from, to, rate)
		name := fmt.Sprintf("write to remote etcd → event in local etcd, %d/s", rate)
		r.append(name+", p50 of a round", "ms", "", quantile(lat, 0.5))
		r.append(name+", p99 of a round", "ms", "", quantile(lat, 0.99))
	}
}

// count counts keys page by page.
func (s *side) count(t *testing.T, prefix string) (n int) {
	t.Helper()
	for after := ""; ; {
		p, err := s.kv.List(t.Context(), prefix, after, 5000, 0)
		if err != nil {
			t.Fatal(err)
		}
		if n += len(p.KVs); !p.More {
			return n
		}
		after = p.KVs[len(p.KVs)-1].Key
	}
}

// steady changes addresses of one cluster at a rate, and returns how long each
// change took to be an event in the other's etcd, in ms. The time is in the
// record.
func steady(t *testing.T, from, to *side, rate int) (lat []float64) {
	t.Helper()
	total := rate * steadySeconds
	_, rev, err := to.kv.Get(t.Context(), kvstore.Prefix(kvstore.State, from.name))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	established := make(chan struct{})
	var once sync.Once
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = to.kv.Watch(ctx, kvstore.KindPrefix(kvstore.State, from.name, kvstore.KindIP), rev+1, func(b kvstore.WatchBatch) error {
			once.Do(func() { close(established) })
			now := time.Now().UnixNano()
			for _, e := range b.Events {
				var ip keyspacev1.IPEntry
				if proto.Unmarshal(e.Value, &ip) == nil {
					lat = append(lat, float64(now-ip.GetUpdatedAt())/1e6)
				}
			}
			if len(lat) >= total {
				cancel()
			}
			return nil
		})
	}()
	<-established
	var writers sync.WaitGroup
	begin := time.Now()
	for n := range total {
		time.Sleep(time.Until(begin.Add(time.Duration(n) * time.Second / time.Duration(rate))))
		writers.Go(func() {
			k, m := ipRecord(from.name, from.id, n, from.nodeAddr(0))
			value, err := proto.Marshal(m)
			if err == nil {
				_, err = from.kv.Txn(t.Context(), nil, []kvstore.Op{kvstore.Put(k.String(), value)}, nil)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	writers.Wait()
	<-done
	if len(lat) < total {
		t.Fatalf("%d of %d changes arrived within %s", len(lat), total, within)
	}
	return lat
}
