// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/observe/stages"
)

// States of a peer in status.
const (
	statePending    = "pending"
	stateLeaving    = "leaving"
	stateConnecting = "connecting"
	stateConnected  = "connected"
	stateLost       = "lost"
	stateUnreadable = "unreadable"
)

// peerState is what is known about one peering, for status and the PeerView. It
// outlives the streams. It is safe for concurrent use.
type peerState struct {
	now func() time.Time
	// observe is told how long a stage took.
	observe func(stage stages.Stage, took time.Duration)

	mu           sync.Mutex
	session      *session // nil: no stream
	everUp       bool
	complete     bool      // on this stream: nothing is missing
	freshAt      time.Time // when nothing was missing the last time
	verdict      string    // on the age of its data,
	dataSince    time.Time // since then
	since        time.Time // of the present state
	lastBy, last string    // of the newest stream: who dialled it, address
	certExpires  time.Time
	heard        time.Time // monotonic

	lag           lagMeter
	remotePending uint64    // changes that the far side has not sent
	inFlight      []arrival // batches received and not applied
	unapplied     uint64

	snapshotsReceived, resumesReceived uint64
	snapshotsSent, resumesSent         uint64
	changesReceived, changesSent       uint64
	refused                            map[string]uint64
	refusedAt                          time.Time // not a record, but the stream or what it said of itself
	refusals                           refusals
	lastError, lastSync                string
	repairs                            uint64    // copies made again because somebody had changed them
	repairedAt                         time.Time // monotonic: the last began because of a change under a stream
	spoilt                             string    // a key that somebody changed; empty once all is copied again

	position *keyspacev1.Position
	acked    *keyspacev1.Position // of our stream, stored by the peer
	kinds    map[string]uint64
	synced   []string
	// trustAcked is the hash of our bundle that the peer says it believes.
	trustAcked []byte

	waiting  time.Time // since when acknowledgements do not move on; zero: none is due
	agreed   agreement // of the newest stream
	narrowed error     // what of its grant is not in force
	// notGranted are the ranges that its Cluster record declares beyond its grant,
	// as the copy names them.
	notGranted []string
	elsewhere  *keyspacev1.PeerView
	// syncedElsewhere are the kinds that another replica of ours has copied.
	syncedElsewhere []string
}

func newPeerState(now func() time.Time) *peerState {
	return &peerState{now: now, observe: func(stages.Stage, time.Duration) {}, since: now(), freshAt: now(), verdict: dataFresh, dataSince: now(), refused: map[string]uint64{}, refusals: newRefusals(), position: &keyspacev1.Position{}, acked: &keyspacev1.Position{}}
}

// do runs fn under the lock.
func (p *peerState) do(fn func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fn()
}

func (p *peerState) up(s *session) {
	p.do(func() {
		p.session, p.everUp, p.since, p.heard = s, true, p.now(), time.Now()
		p.complete, p.agreed, p.waiting = false, s.agreed, time.Time{}
		p.lastBy, p.last, p.certExpires = dialledBy(s.byUs), s.address, s.certExpires
		p.inFlight, p.unapplied, p.remotePending = nil, 0, 0
	})
}

func (p *peerState) down(s *session, err error) {
	p.do(func() {
		if p.session != s {
			return
		}
		p.session, p.since, p.waiting = nil, p.now(), time.Time{}
		if err != nil {
			p.lastError = err.Error()
		}
	})
}

// acknowledged notes up to where the peer has stored our stream. The position
// goes back when it asks for older records, as after a restore.
func (p *peerState) acknowledged(pos *keyspacev1.Position) { p.do(func() { p.acked = pos }) }

func (p *peerState) failed(err error) { p.do(func() { p.lastError = err.Error() }) }

// received notes a batch that waits to be applied.
func (p *peerState) received(count uint64, oldest int64) {
	p.do(func() {
		p.changesReceived += count
		p.unapplied += count
		p.inFlight = append(p.inFlight, arrival{oldest: oldest, at: time.Now()})
		if oldest != 0 && p.lag.known() {
			p.observe(stages.Stream, p.lag.age(p.now(), oldest))
		}
	})
}

// applied notes that the longest waiting batch is applied.
func (p *peerState) applied(count uint64) {
	p.do(func() {
		p.unapplied -= min(count, p.unapplied)
		if len(p.inFlight) == 0 {
			return
		}
		if a := p.inFlight[0]; a.oldest != 0 && count > 0 {
			p.lag.applied(p.now(), a.oldest)
			p.observe(stages.Apply, time.Since(a.at))
		}
		p.inFlight = p.inFlight[1:]
	})
}

// silence is how long nothing was heard on the stream.
func (p *peerState) silence() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Since(p.heard)
}

// link is the state of the stream, and since when.
func (p *peerState) link(lostAfter time.Duration) (state string, since time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.linkLocked(lostAfter)
}

func (p *peerState) linkLocked(lostAfter time.Duration) (string, time.Time) {
	switch {
	case p.session != nil && time.Since(p.heard) <= lostAfter:
		return stateConnected, p.since
	case p.session != nil:
		return stateLost, p.now().Add(-time.Since(p.heard)).Truncate(time.Second)
	case p.everUp:
		return stateLost, p.since
	}
	return stateConnecting, p.since
}

func dialledBy(byUs bool) string {
	if byUs {
		return "us"
	}
	return "them"
}

// acks notes that acknowledgements moved on, and whether more are due.
func (p *peerState) acks(now time.Time, due bool) {
	p.do(func() {
		if p.waiting = now; !due {
			p.waiting = time.Time{}
		}
	})
}

// status renders the peer.
func (p *peerState) status(peer *keyspacev1.Peer, cfg *Config, t terms) *hawserv1.PeerStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	state, since := p.linkLocked(cfg.LostAfter)
	data, dataSince := p.dataLocked(cfg.LostAfter, t.ages)
	now := p.now()
	p50, p99 := p.lag.quantiles(now)
	out := &hawserv1.PeerStatus{
		Name: peer.GetName(), ClusterId: peer.GetClusterId(), State: state, Since: since.UnixNano(),
		DialledBy: p.lastBy, Address: p.last, Data: data,
		LagEvents: int64(p.remotePending + p.unapplied), LagP50Seconds: p50.Seconds(), LagP99Seconds: p99.Seconds(),
		KeysByKind: maps.Clone(p.kinds), Refused: maps.Clone(p.refused), LastRefused: p.refusals.lines(),
		NodesTotal:          uint32(p.kinds[string(kvstore.KindNode)]),
		PositionIncarnation: p.position.GetIncarnation(), PositionRevision: p.position.GetRevision(),
		SnapshotsReceived: p.snapshotsReceived, ResumesReceived: p.resumesReceived,
		SnapshotsSent: p.snapshotsSent, ResumesSent: p.resumesSent,
		Repairs: p.repairs, ChangesReceived: p.changesReceived, ChangesSent: p.changesSent,
		LastError: p.lastError, LastSync: p.lastSync, SyncedKinds: slices.Clone(p.synced),
		DataSince: dataSince.UnixNano(), ClockOffsetSeconds: p.lag.offset().Seconds(), Protocol: p.agreed.protocol,
		Capabilities: slices.Clone(p.agreed.capabilities), Version: p.agreed.version, Endpoints: t.endpoints,
		Declared: len(peer.GetDeclared()) > 0, Replica: cfg.Replica, StaleAfter: int64(t.ages.stale), ExpireAfter: int64(t.ages.expire),
	}
	if out.RefusedNow = uint32(len(p.refusals.standing)); !p.refusedAt.IsZero() {
		out.RefusedAt = p.refusedAt.UnixNano()
	}
	if state == stateConnecting { // it was never heard
		out.Data, out.DataSince = "", 0
	}
	if !p.waiting.IsZero() {
		out.UnacknowledgedSeconds = time.Since(p.waiting).Seconds()
	}
	for _, n := range p.kinds {
		out.Keys += n
	}
	if !p.certExpires.IsZero() {
		out.CertificateExpiresAt = p.certExpires.UnixNano()
	}
	switch {
	case state != stateConnected && p.everUp:
		out.LagSeconds = time.Since(p.heard).Seconds()
	case len(p.inFlight) > 0 && p.inFlight[0].oldest != 0:
		out.LagSeconds = p.lag.age(now, p.inFlight[0].oldest).Seconds()
	}
	if v := p.elsewhere; v != nil && p.session == nil {
		p.asElsewhere(out, v)
	}
	out.Findings = p.findings(out)
	return out
}

// view is the PeerView of the moment, without its data verdict.
func (p *peerState) view(peer *keyspacev1.Peer, lostAfter time.Duration) *keyspacev1.PeerView {
	p.mu.Lock()
	defer p.mu.Unlock()
	state, since := p.linkLocked(lostAfter)
	v := &keyspacev1.PeerView{
		Peer: peer.GetName(), ClusterId: peer.GetClusterId(), Connected: state == stateConnected, Since: since.UnixNano(),
		DialledBy: p.lastBy, Address: p.last, Position: proto.CloneOf(p.position), Acknowledged: proto.CloneOf(p.acked),
		PodCidrs: peer.GetGrant().GetPodCidrs(), NodeCidrs: peer.GetGrant().GetNodeCidrs(), FreshAt: p.freshAt.UnixNano(),
		ClockOffset: int64(p.lag.offset()),
	}
	if !p.certExpires.IsZero() {
		v.CertificateExpiresAt = p.certExpires.UnixNano()
	}
	if b := p.agreed.believedFor; b != nil {
		v.BelievedFor = proto.Int64(int64(*b))
	}
	return v
}
