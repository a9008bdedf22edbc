// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/invitation"
	"github.com/hawser-mesh/hawser/internal/plain"
	"github.com/hawser-mesh/hawser/internal/tlsgrpc"
	"github.com/hawser-mesh/hawser/kvstore/cas"
)

const (
	callTimeout  = 10 * time.Second
	confirmTries = 3
)

// Result is the outcome of a join or of its preflight.
type Result struct {
	Peer     *keyspacev1.Cluster
	Findings []*federationv1.Finding
	Joined   bool
	// Grant is what the peer may publish and ask here, Granted what this cluster
	// may there. Only of a join.
	Grant, Granted *keyspacev1.Grant
	// Shakes are attempts to reach a peer's endpoints; of a peer only.
	Shakes []Shake
}

// GrantsHash names both grants of a join, so that what was shown can be
// confirmed.
func (r *Result) GrantsHash() []byte {
	sum := sha256.Sum256(slices.Concat([]byte(r.Peer.GetName()), []byte{0}, GrantHash(r.Grant), GrantHash(r.Granted)))
	return sum[:16]
}

// How says what a join does. The zero value joins, whatever is granted.
type How struct {
	// PreflightOnly stores nothing anywhere and leaves the token unused.
	PreflightOnly bool
	// Confirmed is the GrantsHash that somebody agreed to; with other grants there
	// is no join. Nil agrees to any.
	Confirmed []byte
}

// joinConn is one connection to an inviter's join service.
type joinConn struct {
	federationv1.JoinClient
	state tls.ConnectionState
	conn  net.Conn
	close func()
}

// Join is the joining side: preflight from both points of view, then prepare
// and confirm. Blocking findings are no error: the Result has them and Joined is
// false. After an error nothing is left here; what could not be undone at the
// inviter (the message says so) goes away when the token expires. It blocks for
// up to half a minute.
func Join(ctx context.Context, d Deps, text string, how How) (Result, error) {
	tok, err := invitation.Parse(text)
	if err != nil {
		return Result{}, err
	}
	if tok.Node != "" {
		return Result{}, fmt.Errorf("join %q: the token is for its node %s; use it there: hawser-agent --join", tok.Inviter, tok.Node)
	}
	if !d.Now().Before(tok.Expires) {
		return Result{}, fmt.Errorf("join %q: the token expired at %s; ask for a new one: hawser mesh invite", tok.Inviter, tok.Expires.UTC().Format(time.RFC3339))
	}
	if tok.Inviter == d.Own().GetName() {
		return Result{}, fmt.Errorf("join %q: the token was made by this cluster; use it on the other one", tok.Inviter)
	}
	c, err := dialInviter(ctx, d, tok)
	if err != nil {
		return Result{}, err
	}
	defer c.close()
	j := &joiner{Deps: d, tok: tok, conn: c}
	resp, err := j.prepare(ctx, true)
	if err != nil {
		return Result{}, fmt.Errorf("join %q: %w", tok.Inviter, refusal(err))
	}
	res, err := j.judge(ctx, resp)
	if err != nil || how.PreflightOnly || Blocks(res.Findings) {
		return res, err
	}
	if len(how.Confirmed) > 0 && !bytes.Equal(how.Confirmed, res.GrantsHash()) {
		return res, fmt.Errorf("join %q: what the two clusters grant each other has changed since it was confirmed; nothing was changed on either side; look again", tok.Inviter)
	}
	if err := j.commit(ctx, resp); err != nil {
		return res, fmt.Errorf("join %q: %w", tok.Inviter, refusal(err))
	}
	res.Joined = true
	d.Log.Info("joined peer", "peer", tok.Inviter)
	return res, nil
}

// joiner is one join in progress.
type joiner struct {
	Deps
	tok  invitation.Token
	conn joinConn
}

func (j *joiner) proof(step string) ([]byte, error) {
	return invitation.Proof(j.tok.Secret, j.conn.state, step, j.tok.CAHash, BundleHash(rawBundle(j.Creds.CA())))
}

func (j *joiner) prepare(ctx context.Context, preflightOnly bool) (*federationv1.PrepareResponse, error) {
	p, err := j.proof(stepPrepare)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return j.conn.Prepare(ctx, &federationv1.PrepareRequest{
		TokenId: j.tok.ID, Proof: p, TrustBundle: rawBundle(j.Creds.CA()), Cluster: j.Own(),
		Time: j.Now().UnixNano(), PreflightOnly: preflightOnly,
	})
}

// What is shown of an inviter at most.
const (
	maxShown    = 1024 // bytes of a text
	maxFindings = 100
)

// shown are an inviter's findings as people here see them.
func shown(fs []*federationv1.Finding) []*federationv1.Finding {
	fs = fs[:min(len(fs), maxFindings)]
	for _, f := range fs {
		for _, text := range []*string{&f.Check, &f.Object, &f.Problem, &f.Fix} {
			*text = plain.Text(*text, maxShown)
		}
	}
	return fs
}

// judge adds our own findings to the inviter's.
func (j *joiner) judge(ctx context.Context, r *federationv1.PrepareResponse) (Result, error) {
	res := Result{Peer: r.GetCluster(), Findings: shown(r.GetFindings())}
	if r.GetCluster().GetName() != j.tok.Inviter {
		return res, fmt.Errorf("join %q: the server calls itself %q", j.tok.Inviter, plain.Text(r.GetCluster().GetName(), maxShown))
	}
	bundle, err := parseBundle(r.GetTrustBundle())
	if err != nil {
		return res, fmt.Errorf("join %q: its %w", j.tok.Inviter, err)
	}
	if err := verifyAgainst(j.conn.state.PeerCertificates, j.tok.Inviter, bundle, j.Now()); err != nil {
		return res, fmt.Errorf("join %q: its trust bundle does not hold the CA that it uses: %w", j.tok.Inviter, err)
	}
	if res.Grant, res.Granted, err = j.grants(r); err != nil {
		return res, err
	}
	peers, bad, err := j.Store.Known(ctx)
	if err != nil {
		return res, err
	}
	now, mine := j.Now(), j.tok.ID
	for _, p := range peers {
		if p.GetName() == j.tok.Inviter && p.GetState() != keyspacev1.Peer_STATE_PENDING {
			mine = "" // joined before: no repetition of an unfinished join
		}
	}
	ours := Preflight(
		Side{Own: j.Own(), CA: j.Creds.CA(), Peers: peers, Unreadable: bad, Now: now, TokenID: mine},
		Candidate{Cluster: r.GetCluster(), Bundle: bundle, Skew: time.Duration(r.GetTime() - now.UnixNano())})
	ours = append(ours, checkPathMTU(r.GetCluster().GetName(), j.conn.conn, j.Store.nodeMTU(ctx))...)
	res.Findings = merge(res.Findings, ours)
	// Ways differ by direction: what each side cannot reach is said of each.
	res.Findings = append(res.Findings, checkReach(ctx, r.GetCluster().GetName(), r.GetCluster().GetEndpoints(), j.Trust.JoinClientConfig(j.tok.Inviter, j.tok.CAHash))...)
	return res, nil
}

// grants are what the inviter may do here and we may there. What it declares may
// be unusable: then the preflight says so.
func (j *joiner) grants(r *federationv1.PrepareResponse) (theirs, ours *keyspacev1.Grant, err error) {
	theirs, _ = GrantFor(r.GetCluster())
	if ours = r.GetGrant(); ours == nil { // an earlier version grants what was declared
		ours, err = GrantFor(j.Own())
	}
	return theirs, ours, err
}

// sameCandidate reports whether a cluster still describes itself as it did when it
// was judged.
func sameCandidate(a, b *federationv1.PrepareResponse) bool {
	x, y := proto.CloneOf(a.GetCluster()), proto.CloneOf(b.GetCluster())
	for _, c := range []*keyspacev1.Cluster{x, y} {
		c.UpdatedAt, c.Endpoints = 0, nil
	}
	return proto.Equal(x, y) && BundleHash(a.GetTrustBundle()) == BundleHash(b.GetTrustBundle()) && bytes.Equal(GrantHash(a.GetGrant()), GrantHash(b.GetGrant()))
}

// merge drops our view of what the inviter already found.
func merge(theirs, ours []*federationv1.Finding) []*federationv1.Finding {
	out := theirs
	for _, f := range ours {
		known := false
		for _, t := range theirs {
			known = known || t.GetCheck() == f.GetCheck()
		}
		if !known {
			out = append(out, f)
		}
	}
	return out
}

// commit prepares at the inviter, stores the pending peer here, confirms there
// and then here; on failure it undoes both. The inviter has to be as it was when
// it was judged.
func (j *joiner) commit(ctx context.Context, as *federationv1.PrepareResponse) error {
	resp, err := j.prepare(ctx, false)
	switch {
	case err != nil:
	case !resp.GetAccepted():
		err = errors.New("the inviter's findings changed meanwhile; try again")
	case !sameCandidate(as, resp):
		err = errors.New("the inviter describes itself otherwise than a moment ago, when it was judged; try again")
	}
	if err != nil {
		return j.undo(ctx, err)
	}
	rec, err := newPeer(resp.GetCluster(), resp.GetTrustBundle(), j.tok.ID, j.Now(), j.tok.Expires.UnixNano())
	if err != nil {
		return j.undo(ctx, err)
	}
	at, err := j.Store.peer(ctx, rec.GetName())
	if err == nil {
		err = j.Store.createPeer(ctx, rec, at.Rev)
	}
	if err != nil {
		return j.undo(ctx, err)
	}
	if err := j.confirm(ctx, false); err != nil {
		return j.undo(ctx, err)
	}
	if at, err = j.Store.peer(ctx, rec.GetName()); err == nil {
		rec.State, rec.PendingUntil = keyspacev1.Peer_STATE_CONFIRMED, 0
		err = j.Store.commit(ctx, j.Store.putPeer(rec, at.Rev))
	}
	if err != nil {
		return j.undo(ctx, err)
	}
	return nil
}

func (j *joiner) confirm(ctx context.Context, abort bool) error {
	p, err := j.proof(stepConfirm)
	if err != nil {
		return err
	}
	for try := 1; ; try++ {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		_, err = j.conn.Confirm(call, &federationv1.ConfirmRequest{TokenId: j.tok.ID, Proof: p, Abort: abort})
		cancel()
		if status.Code(err) != codes.Unavailable || try == confirmTries {
			return err
		}
	}
}

// undo removes what this join left on either side and returns the cause, with a
// word about what could not be removed.
func (j *joiner) undo(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	at, err := j.Store.peer(ctx, j.tok.Inviter)
	if err == nil && at.Rev != 0 && at.Msg.GetTokenId() == j.tok.ID && at.Msg.GetState() == keyspacev1.Peer_STATE_PENDING {
		err = j.Store.commit(ctx, cas.Write{Key: j.Store.peerKey(j.tok.Inviter), Rev: at.Rev})
	}
	if err != nil {
		cause = fmt.Errorf("%w (and the pending peer here could not be removed: %w; it goes away by itself when the token expires)", cause, err)
	}
	if err := j.confirm(ctx, true); err != nil && status.Code(err) != codes.Unauthenticated {
		cause = fmt.Errorf("%w (and the inviter could not be told: %w; a peer that it shows as pending goes away when the token expires, one that is confirmed with: hawser mesh leave %s)", cause, err, j.Own().GetName())
	}
	return cause
}

// dialInviter tries the token's endpoints in turn; the TLS handshake has checked
// the CA when it returns.
func dialInviter(ctx context.Context, d Deps, tok invitation.Token) (joinConn, error) {
	cfg := d.Trust.JoinClientConfig(tok.Inviter, tok.CAHash)
	var errs []error
	for _, ep := range tok.Endpoints {
		c, err := tlsgrpc.Dial(ctx, ep, cfg)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		cc, err := tlsgrpc.ClientOver(c)
		if err != nil {
			c.Close()
			return joinConn{}, fmt.Errorf("join %q: %w", tok.Inviter, err)
		}
		return joinConn{federationv1.NewJoinClient(cc), c.ConnectionState(), c, func() { cc.Close(); c.Close() }}, nil
	}
	return joinConn{}, fmt.Errorf("join %q: no endpoint of the token answers; if it cannot be reached from here, invite from this side instead: %w", tok.Inviter, errors.Join(errs...))
}

// refusal shortens a gRPC status to what a person needs.
func refusal(err error) error {
	if st, ok := status.FromError(err); ok && err != nil {
		return errors.New(plain.Text(st.Message(), maxShown))
	}
	return err
}
