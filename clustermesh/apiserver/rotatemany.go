// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/cas"
)

// Several replicas have a copy of the CA, and their members of etcd believe each
// other by it. A record says how far its replacement has come; each replica
// follows on its disk, and begins anew where its etcd must believe others
// (announced, none), when it is its turn: one at a time, so that etcd goes on. A step is taken once all have
// confirmed the one before.

// rotationEvery is how often a replica looks at the record.
const rotationEvery = 500 * time.Millisecond

// many reports whether several replicas have a copy of the CA.
func (s *Server) many() bool { return len(s.cfg.Etcd.Members) > 0 }

func (s *Server) rotation(ctx context.Context) (cas.Record[*keyspacev1.CARotation], error) {
	return cas.Get(ctx, s.kv, kvstore.NewKey(kvstore.Private, s.cfg.Cluster, kvstore.KindCARotation).String(), &keyspacev1.CARotation{})
}

func (s *Server) changeRotation(ctx context.Context, edit func(*keyspacev1.CARotation) error) error {
	key := kvstore.NewKey(kvstore.Private, s.cfg.Cluster, kvstore.KindCARotation).String()
	return cas.Retry(ctx, func() error {
		r, err := s.rotation(ctx)
		if err != nil {
			return err
		}
		before := r.Msg.String()
		if err := edit(r.Msg); err != nil || r.Msg.String() == before {
			return err
		}
		r.Msg.UpdatedAt = time.Now().UnixNano()
		return cas.Commit(ctx, s.kv, cas.Write{Key: key, Rev: r.Rev, Msg: r.Msg})
	})
}

// rotationPhase is the phase of a record; none when there is no record.
func rotationPhase(r *keyspacev1.CARotation) pki.Phase {
	if r.GetPhase() == "" {
		return pki.PhaseNone
	}
	return pki.Phase(r.GetPhase())
}

// unconfirmed are the replicas that do not run as the phase says.
func (s *Server) unconfirmed(r *keyspacev1.CARotation) []string {
	var out []string
	for _, m := range s.cfg.Etcd.Members {
		if r.GetPhase() != "" && !slices.Contains(r.GetConfirmed(), m.Name) {
			out = append(out, "API server "+m.Name)
		}
	}
	return out
}

// trusted is the bundle of a phase, the signing CA first; nil without a record.
func trusted(r *keyspacev1.CARotation, phase pki.Phase) [][]byte {
	switch {
	case r.GetPhase() == "":
		return nil
	case phase == pki.PhaseAnnounced:
		return [][]byte{r.GetFormer(), r.GetNext()}
	case phase == pki.PhaseSwitched:
		return [][]byte{r.GetNext(), r.GetFormer()}
	}
	return [][]byte{r.GetNext()}
}

// toldTrust is what the nodes are to believe: that another CA signs only once it
// does so at every replica, as they renew their certificates at any.
func (s *Server) toldTrust(r *keyspacev1.CARotation) [][]byte {
	phase := rotationPhase(r)
	if phase == pki.PhaseSwitched && len(s.unconfirmed(r)) > 0 {
		phase = pki.PhaseAnnounced
	}
	return trusted(r, phase)
}

// rotateMany is RotateCA where several replicas have the CA.
func (s *Server) rotateMany(ctx context.Context, to pki.Phase) error {
	return s.changeRotation(ctx, func(r *keyspacev1.CARotation) error {
		phase := rotationPhase(r)
		if missing := s.unconfirmed(r); len(missing) > 0 && phase != to {
			return status.Errorf(codes.FailedPrecondition, "not confirmed by %s: every replica has to take each step, as their etcd believes the others by the CA; start it, or replace it (hawser-apiserver member replace)",
				strings.Join(missing, ", "))
		}
		switch {
		case to == pki.PhaseAnnounced && phase == pki.PhaseNone:
			return s.announceMany(r)
		case to == pki.PhaseSwitched && phase == pki.PhaseAnnounced:
			r.Phase, r.Confirmed, r.SealedKey = string(to), nil, nil // each has the key
		case to == pki.PhaseNone && phase == pki.PhaseSwitched:
			r.Phase, r.Confirmed = string(to), nil
		case to == pki.PhaseSwitched && phase == pki.PhaseNone:
			return status.Error(codes.FailedPrecondition, "no next CA was announced")
		case to == pki.PhaseNone && phase == pki.PhaseAnnounced:
			return status.Error(codes.FailedPrecondition, "the next CA does not sign yet")
		}
		return nil
	})
}

// announceMany makes the next CA and seals it for the other replicas.
func (s *Server) announceMany(r *keyspacev1.CARotation) error {
	now := s.creds.authority()
	next, err := pki.NewCA(s.cfg.Cluster, time.Now())
	if err != nil {
		return err
	}
	cert, sealed, err := now.Seal(next)
	if err != nil {
		return err
	}
	r.Phase, r.Next, r.SealedKey, r.Former, r.Confirmed, r.Turn = string(pki.PhaseAnnounced), cert, sealed, now.Certificate().Raw, nil, ""
	return nil
}

// followRotation takes the steps of the CA's replacement on this replica, until
// the context ends or it is to begin anew.
func (s *Server) followRotation(ctx context.Context) error {
	if !s.many() {
		return nil
	}
	return s.repeat(ctx, "follow the replacement of the CA", rotationEvery, s.rotationStep)
}

func (s *Server) rotationStep(ctx context.Context) error {
	at, err := s.rotation(ctx)
	if err != nil || at.Rev == 0 {
		return err
	}
	r, me := at.Msg, s.cfg.Replica
	if len(s.unconfirmed(r)) == 0 && s.settled == r.GetPhase() {
		return nil
	}
	if err := s.publishTrust(ctx); err != nil {
		return err
	}
	if s.settled = ""; len(s.unconfirmed(r)) == 0 {
		s.settled = r.GetPhase()
	}
	if slices.Contains(r.GetConfirmed(), me) {
		return nil
	}
	if err := s.takeStep(r); err != nil {
		return err
	}
	phase := rotationPhase(r)
	if phase == pki.PhaseSwitched && slices.EqualFunc(s.opened, trusted(r, pki.PhaseAnnounced), bytes.Equal) {
		// Its etcd believes both since it began, and reads its certificates at each handshake.
		if err := s.creds.issue(time.Now()); err != nil {
			return err
		}
		s.opened = trusted(r, phase)
	}
	if slices.EqualFunc(s.opened, trusted(r, phase), bytes.Equal) { // it began with it
		return s.changeRotation(ctx, func(now *keyspacev1.CARotation) error {
			if now.GetPhase() != r.GetPhase() || slices.Contains(now.GetConfirmed(), me) {
				return nil
			}
			now.Confirmed = append(now.Confirmed, me)
			if now.GetTurn() == me {
				now.Turn = ""
			}
			s.log.Info("CA replaced by steps", "phase", now.GetPhase(), "replica", me)
			return nil
		})
	}
	mine := false
	if err := s.changeRotation(ctx, func(now *keyspacev1.CARotation) error {
		if now.GetPhase() == r.GetPhase() && now.GetTurn() == "" {
			now.Turn = me
		}
		mine = now.GetTurn() == me
		return nil
	}); err != nil || !mine {
		return err
	}
	select {
	case s.reopen <- &errReopen{why: "the cluster's CA changed: " + r.GetPhase()}:
	default: // it begins anew already
	}
	return nil
}

// takeStep makes the CA on disk what the record says.
func (s *Server) takeStep(r *keyspacev1.CARotation) error {
	to := rotationPhase(r)
	there, err := pki.Follows(s.creds.dir, r.GetNext(), to)
	if err != nil || there {
		return err
	}
	switch to {
	case pki.PhaseAnnounced:
		err = pki.AnnounceSealed(s.creds.dir, r.GetNext(), r.GetSealedKey())
	case pki.PhaseSwitched:
		err = pki.Switch(s.creds.dir)
	default:
		err = pki.Retire(s.creds.dir)
	}
	if err != nil {
		return fmt.Errorf("take the step to %q: %w", to, err)
	}
	return s.creds.reload()
}

// manyStatus tells of the replicas, for CAStatus.
func (s *Server) manyStatus(ctx context.Context, out *hawserv1.CAStatusReport) ([][]byte, error) {
	at, err := s.rotation(ctx)
	if err != nil || at.Rev == 0 {
		return nil, err
	}
	out.Phase = string(rotationPhase(at.Msg))
	missing := s.unconfirmed(at.Msg)
	out.Waiting = append(out.Waiting, missing...)
	for _, m := range s.cfg.Etcd.Members {
		if name := "API server " + m.Name; !slices.Contains(missing, name) {
			out.Confirmed = append(out.Confirmed, name)
		}
	}
	return s.toldTrust(at.Msg), nil
}
