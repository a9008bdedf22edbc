// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/invitation"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/internal/tlsgrpc"
	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	madeUpHistory = "made-up" // incarnation of every remote
	pageChanges   = 1000      // of a batch, as API servers send them
	sendWindow    = 8         // batches not acknowledged
	beatEvery     = 500 * time.Millisecond
	redialMin     = 100 * time.Millisecond
	redialMax     = 5 * time.Second
)

// remote plays the API server of a made-up cluster: it has joined by invitation,
// has a CA of its own, dials, and sends what its world has and what changes.
type remote struct {
	world    world
	ca       *pki.CA
	leaf     tls.Certificate
	trust    *peering.Trust
	peer     string // whose API server it dials,
	endpoint string // where
	snapshot []*federationv1.Batch
	pack     *zstd.Encoder

	mu      sync.Mutex
	log     []change // what changed after the snapshot; the n-th has revision base+n+1
	wake    chan struct{}
	acks    []float64 // ms from a batch's oldest change to its acknowledgement
	stored  int       // changes of log that are acknowledged
	carried counts
}

// change is a write of one address.
type change struct {
	at int64 // Unix ns
	n  int
}

// counts is what a remote has sent since it was made.
type counts struct{ Sent, Snapshots, Resumes int }

// Certificate implements peering.Credentials.
func (r *remote) Certificate() (*tls.Certificate, error) { return &r.leaf, nil }

// CA implements peering.Credentials.
func (r *remote) CA() []*x509.Certificate { return []*x509.Certificate{r.ca.Certificate()} }

// base is the revision of the snapshot.
func (r *remote) base() int64 { return int64(r.world.keys()) + 1 }

func newRemote(w world) (*remote, error) {
	now := time.Now()
	r := &remote{world: w, wake: make(chan struct{}, 1)}
	var err error
	if r.ca, err = pki.NewCA(w.Name, now); err != nil {
		return nil, err
	}
	leaf, err := r.ca.Issue(pki.Request{Role: pki.RoleAPIServer}, now)
	if err != nil {
		return nil, err
	}
	r.leaf = leaf.TLS()
	if r.trust, err = peering.NewTrust(w.Name, r, time.Now); err != nil {
		return nil, err
	}
	if r.pack, err = zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true)); err != nil {
		return nil, err
	}
	return r, r.prepare()
}

// prepare packs the snapshot, so that sending it costs next to nothing.
func (r *remote) prepare() error {
	prefix, rev := kvstore.Prefix(kvstore.State, r.world.Name), int64(1)
	var changes []*federationv1.Change
	flush := func() error {
		b, err := r.batch(changes, r.base())
		b.Snapshot, b.OldestAt = true, 0
		r.snapshot, changes = append(r.snapshot, b), nil
		return err
	}
	err := r.world.each(func(k kvstore.Key, m proto.Message) error {
		value, err := kvstore.Encode(k, m)
		if err != nil {
			return err
		}
		changes = append(changes, &federationv1.Change{Key: k.String()[len(prefix):], Value: value, ModRevision: rev})
		if rev++; len(changes) < pageChanges {
			return nil
		}
		return flush()
	})
	if err == nil {
		err = flush()
	}
	r.snapshot[len(r.snapshot)-1].SnapshotEnd = true
	return err
}

func (r *remote) batch(changes []*federationv1.Change, low int64) (*federationv1.Batch, error) {
	raw, err := proto.Marshal(&federationv1.Changes{Changes: changes})
	if err != nil {
		return nil, err
	}
	return &federationv1.Batch{ChangesZstd: r.pack.EncodeAll(raw, nil), Revision: low, Count: uint32(len(changes))}, nil
}

// join uses a token at the cluster that made it.
func (r *remote) join(ctx context.Context, text, version string) error {
	tok, err := invitation.Parse(text)
	if err != nil {
		return err
	}
	c, err := tlsgrpc.Dial(ctx, tok.Endpoints[0], r.trust.JoinClientConfig(tok.Inviter, tok.CAHash))
	if err != nil {
		return err
	}
	defer c.Close()
	cc, err := tlsgrpc.ClientOver(c)
	if err != nil {
		return err
	}
	defer cc.Close()
	bundle := [][]byte{r.ca.Certificate().Raw}
	proof := func(step string) []byte {
		p, err := invitation.Proof(tok.Secret, c.ConnectionState(), step, tok.CAHash, peering.BundleHash(bundle))
		if err != nil {
			panic(err) // the connection is TLS 1.3
		}
		return p
	}
	client := federationv1.NewJoinClient(cc)
	resp, err := client.Prepare(ctx, &federationv1.PrepareRequest{
		TokenId: tok.ID, Proof: proof("prepare"), TrustBundle: bundle, Cluster: r.world.cluster(version), Time: time.Now().UnixNano(),
	})
	if err != nil {
		return err
	}
	if !resp.GetAccepted() {
		return fmt.Errorf("%s is not accepted: %v", r.world.Name, resp.GetFindings())
	}
	r.peer, r.endpoint = tok.Inviter, tok.Endpoints[0]
	if err := r.trust.SetPeer(r.peer, resp.GetTrustBundle()); err != nil {
		return err
	}
	_, err = client.Confirm(ctx, &federationv1.ConfirmRequest{TokenId: tok.ID, Proof: proof("confirm")})
	return err
}

// run keeps a stream up until the context ends, as an API server does.
func (r *remote) run(ctx context.Context, failed func(error)) {
	wait := redialMin
	for ctx.Err() == nil {
		began := time.Now()
		err := r.stream(ctx)
		if ctx.Err() != nil {
			return
		}
		failed(fmt.Errorf("stream of %s: %w", r.world.Name, err))
		if time.Since(began) > redialMax {
			wait = redialMin
		}
		select {
		case <-time.After(wait/2 + rand.N(wait/2)):
		case <-ctx.Done():
		}
		wait = min(2*wait, redialMax)
	}
}

func (r *remote) stream(ctx context.Context) error {
	c, err := tlsgrpc.Dial(ctx, r.endpoint, r.trust.ClientConfig(r.peer))
	if err != nil {
		return err
	}
	defer c.NetConn().Close()
	cc, err := tlsgrpc.ClientOver(c, grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(8<<20)))
	if err != nil {
		return err
	}
	defer cc.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	frames, err := federationv1.NewFederationClient(cc).Stream(ctx)
	if err != nil {
		return err
	}
	own := r.world.cluster("")
	s := &remoteStream{r: r, frames: frames, room: make(chan struct{}, 1), subscribed: make(chan *keyspacev1.Position, 1)}
	err = s.send(&federationv1.Frame{Body: &federationv1.Frame_Hello{Hello: &federationv1.Hello{
		ProtocolMin: 1, ProtocolMax: 1, Cluster: own.GetName(), ClusterId: own.GetId(), Incarnation: madeUpHistory, Description: own,
	}}})
	if err != nil {
		return err
	}
	if f, err := frames.Recv(); err != nil || f.GetHello() == nil {
		return errors.Join(errors.New("no hello"), err)
	}
	if err := s.send(&federationv1.Frame{Body: &federationv1.Frame_Subscribe{Subscribe: &federationv1.Subscribe{}}}); err != nil {
		return err
	}
	return s.run(ctx, cancel)
}

// write notes that an address changed.
func (r *remote) write(n int, at int64) {
	r.mu.Lock()
	r.log = append(r.log, change{at: at, n: n})
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}
