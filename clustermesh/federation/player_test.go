// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/kvstore"
)

// player is a peer without a store: it speaks the protocol over TLS, well or
// badly, as a test says.
type player struct {
	t     testing.TB
	hub   *testCluster
	name  string
	id    uint32
	bits  uint32
	creds *testCreds
	trust *peering.Trust
	// edit changes the hello; mute keeps it from acknowledging.
	edit func(*federationv1.Hello)
	mute bool
	now  func() time.Time

	mu      sync.Mutex
	stream  federationv1.Federation_StreamClient
	hello   *federationv1.Hello // of the hub
	sub     *federationv1.Subscribe
	acked   *federationv1.Ack // the newest
	got     map[string]string // keys of the hub
	seq     uint64
	goodbye *federationv1.Goodbye // of the hub
	err     error                 // why the stream ended
	ended   chan struct{}         // closed then
	sendMu  sync.Mutex
}

// rangesOf divides private space for ids up to 4,095.
func rangesOf(id uint32) (pods, nodes netip.Prefix) {
	p := netip.AddrFrom4([4]byte{10, byte(id >> 4), byte(id<<4) & 0xf0, 0})
	n := netip.AddrFrom4([4]byte{172, 16 + byte(id>>8), byte(id), 0})
	return netip.PrefixFrom(p, 20), netip.PrefixFrom(n, 24)
}

// describeSmall is describe for many clusters.
func describeSmall(name string, id, bits uint32, endpoints ...string) *keyspacev1.Cluster {
	pods, nodes := rangesOf(id)
	return &keyspacev1.Cluster{Name: name, Id: id, Endpoints: endpoints, Version: "v0.1.0",
		PodCidrs: []string{pods.String()}, NodeCidrs: []string{nodes.String()},
		Mesh: &keyspacev1.MeshParameters{ClusterBits: bits, TunnelProtocol: "vxlan", TunnelPort: 8472, Encryption: "off"}}
}

// small makes a cluster one of many.
func small(bits uint32) func(*testCluster) {
	return func(c *testCluster) { c.cfg.Cluster = describeSmall(c.name, c.id, bits, c.proxy.addr()) }
}

// admit makes a player that the hub has joined.
func (c *testCluster) admit(id, bits uint32) *player {
	c.t.Helper()
	p := &player{t: c.t, hub: c, name: fmt.Sprintf("p%04d", id), id: id, bits: bits, now: time.Now}
	ca, err := pki.NewCA(p.name, time.Now())
	if err != nil {
		c.t.Fatal(err)
	}
	p.creds = credsOf(c.t, ca, pki.RoleAPIServer, "")
	if p.trust, err = peering.NewTrust(p.name, p.creds, time.Now); err != nil {
		c.t.Fatal(err)
	}
	if err := p.trust.SetPeer(c.name, [][]byte{c.creds.ca[0].Raw}); err != nil {
		c.t.Fatal(err)
	}
	grant, err := peering.GrantFor(describeSmall(p.name, id, bits))
	if err != nil {
		c.t.Fatal(err)
	}
	c.put(kvstore.NewKey(kvstore.Private, c.name, kvstore.KindPeerView, p.name), &keyspacev1.Peer{
		Name: p.name, ClusterId: id, TrustBundle: [][]byte{ca.Certificate().Raw}, Grant: grant, State: keyspacev1.Peer_STATE_CONFIRMED,
	})
	return p
}

// connect opens a stream, again until the hub knows the player, and plays it
// until the test ends.
func (p *player) connect() {
	p.t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := p.open()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%s: %v", p.name, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// open makes one attempt; the error is what the hub said.
func (p *player) open() error {
	ctx, cancel := context.WithCancel(context.Background())
	cc, c, err := dialPeer(ctx, p.trust, p.hub.name, p.hub.m.Addr().String())
	if err != nil {
		cancel()
		return err
	}
	end := sync.OnceFunc(func() { cancel(); cc.Close(); c.Close() })
	stream, err := federationv1.NewFederationClient(cc).Stream(ctx)
	if err != nil {
		end()
		return err
	}
	h := helloOf(describeSmall(p.name, p.id, p.bits), "i-"+p.name, time.Hour)
	if p.edit != nil {
		p.edit(h)
	}
	var f *federationv1.Frame
	if err = stream.Send(&federationv1.Frame{Body: &federationv1.Frame_Hello{Hello: h}}); err == nil {
		f, err = stream.Recv()
	}
	if err == nil && f.GetHello() == nil {
		err = errors.New("the hub did not answer with a hello")
	}
	if err != nil {
		end()
		return err
	}
	p.mu.Lock()
	p.stream, p.hello, p.got, p.seq, p.goodbye, p.err, p.sub, p.ended = stream, f.GetHello(), map[string]string{}, 0, nil, nil, nil, make(chan struct{})
	p.mu.Unlock()
	p.t.Cleanup(end)
	go p.read(stream, p.ended, end)
	go p.beat(ctx)
	return nil
}

// read plays the receiving side until the stream ends.
func (p *player) read(stream federationv1.Federation_StreamClient, ended chan struct{}, hangUp func()) {
	c, err := newCodec()
	defer close(ended)
	if err != nil {
		return
	}
	defer c.close()
	for {
		f, err := stream.Recv()
		if err != nil {
			p.mu.Lock()
			p.err = err
			p.mu.Unlock()
			return
		}
		switch b := f.GetBody().(type) {
		case *federationv1.Frame_Subscribe:
			p.mu.Lock()
			p.sub = b.Subscribe
			p.mu.Unlock()
		case *federationv1.Frame_Ack:
			p.mu.Lock()
			p.acked = b.Ack
			p.mu.Unlock()
		case *federationv1.Frame_Goodbye:
			p.mu.Lock()
			p.goodbye, p.err = b.Goodbye, errors.New("goodbye")
			p.mu.Unlock()
			hangUp()
			return
		case *federationv1.Frame_Batch:
			changes, err := c.unpack(b.Batch.GetChangesZstd())
			if err != nil {
				return
			}
			p.mu.Lock()
			for _, ch := range changes {
				if p.got[ch.GetKey()] = string(ch.GetValue()); ch.GetDeleted() {
					delete(p.got, ch.GetKey())
				}
			}
			mute := p.mute
			p.mu.Unlock()
			if !mute {
				p.send(&federationv1.Frame{Body: &federationv1.Frame_Ack{Ack: &federationv1.Ack{Sequence: b.Batch.GetSequence()}}})
			}
		}
	}
}

// beat sends heartbeats and subscribes to all at first.
func (p *player) beat(ctx context.Context) {
	p.send(&federationv1.Frame{Body: &federationv1.Frame_Subscribe{Subscribe: &federationv1.Subscribe{}}})
	t := time.NewTicker(300 * time.Millisecond)
	defer t.Stop()
	for {
		p.send(&federationv1.Frame{Body: &federationv1.Frame_Heartbeat{Heartbeat: &federationv1.Heartbeat{Time: p.now().UnixNano()}}})
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}

// send tells the hub something; that it does not listen any more is no error.
func (p *player) send(f *federationv1.Frame) {
	p.mu.Lock()
	stream := p.stream
	p.mu.Unlock()
	p.sendMu.Lock()
	defer p.sendMu.Unlock()
	_ = stream.Send(f)
}

// resync answers the hub's subscription.
func (p *player) resync(mode federationv1.Resync_Mode, rev int64) {
	p.t.Helper()
	eventually(p.t, p.name+" is subscribed to", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.sub != nil
	})
	p.send(&federationv1.Frame{Body: &federationv1.Frame_Resync{Resync: &federationv1.Resync{Mode: mode, Incarnation: "i-" + p.name, Revision: rev}}})
}

// batch sends changes as they should be.
func (p *player) batch(rev int64, snapshot bool, changes ...*federationv1.Change) {
	p.t.Helper()
	p.send(&federationv1.Frame{Body: &federationv1.Frame_Batch{Batch: p.pack(rev, snapshot, changes...)}})
}

// pack is the next batch, for a test to spoil.
func (p *player) pack(rev int64, snapshot bool, changes ...*federationv1.Change) *federationv1.Batch {
	p.t.Helper()
	c, err := newCodec()
	if err != nil {
		p.t.Fatal(err)
	}
	defer c.close()
	packed, err := c.pack(changes)
	if err != nil {
		p.t.Fatal(err)
	}
	p.seq++
	return &federationv1.Batch{Sequence: p.seq, ChangesZstd: packed, Revision: rev, Snapshot: snapshot, SnapshotEnd: snapshot,
		Count: uint32(len(changes)), OldestAt: p.now().UnixNano()}
}

// first sends a snapshot with one address and waits until the hub has it.
func (p *player) first() {
	p.t.Helper()
	p.resync(federationv1.Resync_MODE_SNAPSHOT, 10)
	p.batch(10, true, p.ip(1))
	eventually(p.t, "the snapshot of "+p.name+" is stored", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.acked.GetPosition().GetRevision() == 10
	})
}

// ip is the n-th address of the player.
func (p *player) ip(n int) *federationv1.Change {
	pods, nodes := rangesOf(p.id)
	a := pods.Addr().As4()
	a[3] = byte(n)
	addr := netip.PrefixFrom(netip.AddrFrom4(a), 32).String()
	return p.record(kvstore.NewKey(kvstore.State, p.name, kvstore.KindIP, addr), &keyspacev1.IPEntry{
		Prefix: addr, Identity: p.id<<(24-p.bits) + 7, Node: "n1", TunnelAddress: nodes.Addr().Next().String(), Namespace: "demo", Workload: "w",
	})
}

func (p *player) record(k kvstore.Key, m proto.Message) *federationv1.Change {
	p.t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		p.t.Fatal(err)
	}
	return &federationv1.Change{Key: k.Relative(), Value: b}
}

// seen is what the hub has of the player.
func (p *player) seen() map[string]string {
	return p.hub.keys(&testCluster{name: p.name})
}

func (p *player) has(key string) (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, ok := p.got[key]
	return v, ok
}

// over waits for the end of the stream and returns what the hub said.
func (p *player) over() error {
	p.t.Helper()
	p.mu.Lock()
	ended := p.ended
	p.mu.Unlock()
	select {
	case <-ended:
	case <-time.After(within):
		p.t.Fatalf("the stream of %s did not end", p.name)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// status is that of one peer alone: there may be a thousand.
func (p *player) status() *hawserv1.PeerStatus {
	m := p.hub.m
	m.mu.Lock()
	peer, st, r := m.peers[p.name], m.states[p.name], m.runners[p.name]
	m.mu.Unlock()
	if st == nil || r == nil {
		return &hawserv1.PeerStatus{}
	}
	return st.status(peer, &m.cfg, terms{r.endpoints(), r.ages()})
}

// fault says why the player's stream has ended; nil while it has not.
func (p *player) fault() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}
