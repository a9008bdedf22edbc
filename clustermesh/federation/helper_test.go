// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/testutil/etcdtest"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
	"github.com/hawser-mesh/hawser/observe/stages"
)

const within = 45 * time.Second

// testCreds are a cluster's own certificates.
type testCreds struct {
	mu   sync.Mutex
	leaf tls.Certificate
	ca   []*x509.Certificate
}

func (c *testCreds) Certificate() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l := c.leaf
	return &l, nil
}

func (c *testCreds) CA() []*x509.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ca
}

// set replaces the bundle, and the leaf unless it is nil.
func (c *testCreds) set(leaf *tls.Certificate, bundle ...*x509.Certificate) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ca = bundle; leaf != nil {
		c.leaf = *leaf
	}
}

func credsOf(t testing.TB, ca *pki.CA, role pki.Role, name string) *testCreds {
	t.Helper()
	leaf, err := ca.Issue(pki.Request{Role: role, Name: name}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &testCreds{leaf: leaf.TLS(), ca: []*x509.Certificate{ca.Certificate()}}
}

// testCluster is a cluster with a real etcd and a Manager that can be restarted.
type testCluster struct {
	t     testing.TB
	name  string
	id    uint32
	etcd  *etcdtest.Etcd
	kv    *etcd.Client
	creds *testCreds
	proxy *proxy // peers reach the port through it
	cfg   Config
	now   func() time.Time
	wrap  func(kvstore.Client) kvstore.Client // what the Manager works on
	// explain answers peers.
	explain Explainer
	observe func(peer string, s stages.Stage, took time.Duration)
	putBack func(kvstore.Key, *kvstore.KV)

	m    *Manager
	stop func()
}

// newCluster starts a cluster whose ranges follow from its id.
func newCluster(t testing.TB, id uint32, edit ...func(*testCluster)) *testCluster {
	t.Helper()
	e := etcdtest.Start(t)
	c := &testCluster{t: t, name: e.Cluster, id: id, etcd: e, kv: e.APIServer(t), now: time.Now,
		creds: credsOf(t, e.CA, pki.RoleAPIServer, ""), proxy: newProxy(t)}
	c.cfg = Config{Replica: "a", BackoffMin: 10 * time.Millisecond, BackoffMax: 200 * time.Millisecond, Cluster: describe(c.name, id, c.proxy.addr())}
	for _, fn := range edit {
		fn(c)
	}
	c.start()
	t.Cleanup(func() { c.stop() })
	return c
}

func describe(name string, id uint32, endpoint string) *keyspacev1.Cluster {
	return &keyspacev1.Cluster{
		Name: name, Id: id, Endpoints: []string{endpoint}, Version: "v0.1.0",
		PodCidrs: []string{fmt.Sprintf("10.%d.0.0/16", id)}, NodeCidrs: []string{fmt.Sprintf("192.168.%d.0/24", id)},
		ServiceCidrs: []string{fmt.Sprintf("172.%d.0.0/16", 16+id)},
		Mesh:         &keyspacev1.MeshParameters{ClusterBits: 8, TunnelProtocol: "vxlan", TunnelPort: 8472, Encryption: "off"},
	}
}

func (c *testCluster) start() {
	c.t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	if testing.Verbose() && os.Getenv("HAWSER_TEST_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("cluster", c.name)
	}
	var kv kvstore.Client = c.kv
	if c.wrap != nil {
		kv = c.wrap(kv)
	}
	c.m, err = New(c.cfg, Deps{KV: kv, Creds: c.creds, Now: c.now, Log: log, Listener: lis, Explain: c.explain, Observe: c.observe, PutBack: c.putBack})
	if err != nil {
		c.t.Fatal(err)
	}
	c.proxy.target(lis.Addr().String())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.m.Run(ctx) }()
	c.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				c.t.Errorf("manager of %s: %v", c.name, err)
			}
		case <-time.After(within):
			c.t.Errorf("manager of %s did not end", c.name)
		}
	})
}

func (c *testCluster) restart() {
	c.t.Helper()
	c.stop()
	c.start()
}

func (c *testCluster) status(peer *testCluster) *hawserv1.PeerStatus {
	for _, s := range c.m.Status() {
		if s.GetName() == peer.name {
			return s
		}
	}
	return &hawserv1.PeerStatus{}
}

func (c *testCluster) put(k kvstore.Key, m proto.Message) {
	c.t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		c.t.Fatal(err)
	}
	c.putRaw(k.String(), b)
}

func (c *testCluster) putRaw(key string, value []byte) {
	c.t.Helper()
	if _, err := c.kv.Txn(c.t.Context(), nil, []kvstore.Op{kvstore.Put(key, value)}, nil); err != nil {
		c.t.Fatal(err)
	}
}

func (c *testCluster) del(key string) {
	c.t.Helper()
	if _, err := c.kv.Txn(c.t.Context(), nil, []kvstore.Op{kvstore.Delete(key)}, nil); err != nil {
		c.t.Fatal(err)
	}
}

func (c *testCluster) get(key string) []byte {
	c.t.Helper()
	kv, _, err := c.kv.Get(c.t.Context(), key)
	if err != nil {
		c.t.Fatal(err)
	}
	if kv == nil {
		return nil
	}
	return kv.Value
}

// ip publishes (or changes) the n-th pod of the cluster and returns its key.
func (c *testCluster) ip(n int, workload string) string {
	c.t.Helper()
	k, e := c.ipRecord(n, workload)
	c.put(k, e)
	return k.String()
}

func (c *testCluster) ipRecord(n int, workload string) (kvstore.Key, *keyspacev1.IPEntry) {
	addr := fmt.Sprintf("10.%d.%d.%d/32", c.id, n/256, n%256)
	return kvstore.NewKey(kvstore.State, c.name, kvstore.KindIP, addr), &keyspacev1.IPEntry{
		Prefix: addr, Identity: c.id<<16 + 7, Node: "n1", TunnelAddress: fmt.Sprintf("192.168.%d.1", c.id),
		Namespace: "demo", Workload: workload, UpdatedAt: time.Now().UnixNano(),
	}
}

func (c *testCluster) identity(n uint32, labels ...string) string {
	c.t.Helper()
	k := kvstore.NewKey(kvstore.State, c.name, kvstore.KindIdentity, kvstore.NumberName(n))
	c.put(k, &keyspacev1.Identity{Number: n, Labels: labels})
	return k.String()
}

// fill writes ips [from, to) in a few transactions.
func (c *testCluster) fill(from, to int) {
	c.t.Helper()
	var ops []kvstore.Op
	flush := func() {
		if len(ops) == 0 {
			return
		}
		if _, err := c.kv.Txn(c.t.Context(), nil, ops, nil); err != nil {
			c.t.Fatal(err)
		}
		ops = nil
	}
	for n := from; n < to; n++ {
		k, e := c.ipRecord(n, "w")
		b, err := proto.Marshal(e)
		if err != nil {
			c.t.Fatal(err)
		}
		if ops = append(ops, kvstore.Put(k.String(), b)); len(ops) == 128 {
			flush()
		}
	}
	flush()
}

// keys is everything below state/<of>/ with values.
func (c *testCluster) keys(of *testCluster) map[string]string {
	c.t.Helper()
	out := map[string]string{}
	after := ""
	for {
		page, err := c.kv.List(c.t.Context(), kvstore.Prefix(kvstore.State, of.name), after, 1000, 0)
		if err != nil {
			c.t.Fatal(err)
		}
		for _, kv := range page.KVs {
			out[kv.Key], after = string(kv.Value), kv.Key
		}
		if !page.More {
			return out
		}
	}
}

func sameKeys(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || v != w {
			return false
		}
	}
	return true
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	etcdtest.Eventually(t, within, what, ok)
}

// mirrored waits until b holds exactly what a publishes, and the other way
// round.
func mirrored(t testing.TB, a, b *testCluster) {
	t.Helper()
	eventually(t, fmt.Sprintf("mirrors are equal: %v / %v", a.status(b), b.status(a)), func() bool {
		return sameKeys(a.keys(a), b.keys(a)) && sameKeys(b.keys(b), a.keys(b))
	})
}

func connected(t testing.TB, a, b *testCluster) {
	t.Helper()
	eventually(t, "both connected and copied", func() bool {
		return a.status(b).GetState() == stateConnected && b.status(a).GetState() == stateConnected &&
			len(a.status(b).GetSyncedKinds()) > 0 && len(b.status(a).GetSyncedKinds()) > 0
	})
}

// copied waits until c has received n snapshots of the peer and no more.
func copied(t testing.TB, c, peer *testCluster, n uint64) *hawserv1.PeerStatus {
	t.Helper()
	eventually(t, fmt.Sprintf("%d snapshots received", n), func() bool { return c.status(peer).GetSnapshotsReceived() >= n })
	s := c.status(peer)
	if s.GetSnapshotsReceived() != n {
		t.Errorf("%d snapshots received, not %d: %v", s.GetSnapshotsReceived(), n, s)
	}
	return s
}

func invite(t testing.TB, c *testCluster, to string) string {
	t.Helper()
	tok, err := c.m.Invite(t.Context(), to, 0)
	if err != nil {
		t.Fatal(err)
	}
	return tok.String()
}

// joinPeers lets b join a and waits for the first sync.
func joinPeers(t testing.TB, a, b *testCluster) {
	t.Helper()
	res, err := b.m.Join(t.Context(), invite(t, a, b.name), false)
	if err != nil || !res.Joined {
		t.Fatalf("join: %v %v", err, res)
	}
	connected(t, a, b)
}

// pair is two clusters that have joined.
func pair(t testing.TB, edit ...func(*testCluster)) (a, b *testCluster) {
	t.Helper()
	a, b = newCluster(t, 1, edit...), newCluster(t, 2, edit...)
	joinPeers(t, a, b)
	return a, b
}

// oneWay is a pair of which only b dials: no stream takes another one's place, and
// what the last one began with stays in the status.
func oneWay(t testing.TB, edit ...func(*testCluster)) (a, b *testCluster) {
	t.Helper()
	a, b = newCluster(t, 1, edit...), newCluster(t, 2, append(edit, func(c *testCluster) { c.cfg.Cluster.Endpoints = nil })...)
	joinPeers(t, a, b)
	return a, b
}

// proxy forwards TCP to a target that may change; cut ends what is open.
type proxy struct {
	lis net.Listener

	mu     sync.Mutex
	to     string
	closed bool // refuse newcomers
	refuse int  // so many were
	came   int  // newcomers, refused or not
	conns  map[net.Conn]struct{}
}

func newProxy(t testing.TB) *proxy {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{lis: lis, conns: map[net.Conn]struct{}{}}
	go p.accept()
	t.Cleanup(func() { lis.Close(); p.cut(true) })
	return p
}

func (p *proxy) addr() string { return p.lis.Addr().String() }

// refusals is how many newcomers were refused.
func (p *proxy) refusals() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.refuse
}

// callers is how many newcomers there were.
func (p *proxy) callers() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.came
}

func (p *proxy) target(addr string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.to = addr
}

func (p *proxy) accept() {
	for {
		c, err := p.lis.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		to, closed := p.to, p.closed
		p.came++
		if closed {
			p.refuse++
		}
		p.mu.Unlock()
		if closed || to == "" {
			c.Close()
			continue
		}
		d, err := net.Dial("tcp", to)
		if err != nil {
			c.Close()
			continue
		}
		p.mu.Lock()
		p.conns[c], p.conns[d] = struct{}{}, struct{}{}
		p.mu.Unlock()
		go p.pipe(c, d)
		go p.pipe(d, c)
	}
}

func (p *proxy) pipe(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	to.Close()
	from.Close()
	p.mu.Lock()
	delete(p.conns, from)
	p.mu.Unlock()
}

// cut closes all connections and, with closed, lets no new ones in.
func (p *proxy) cut(closed bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = closed
	for c := range p.conns {
		c.Close()
	}
}

func (p *proxy) heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = false
}

// isolate cuts both ways between two clusters; the returned function heals.
func isolate(a, b *testCluster) (heal func()) {
	a.proxy.cut(true)
	b.proxy.cut(true)
	return func() { a.proxy.heal(); b.proxy.heal() }
}

// viewOf is the PeerView of a peer by its name.
func (c *testCluster) viewOf(peer string) *keyspacev1.PeerView {
	c.t.Helper()
	v := &keyspacev1.PeerView{}
	if err := proto.Unmarshal(c.get(viewKey(c.name, peer)), v); err != nil {
		c.t.Fatal(err)
	}
	return v
}
