// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
)

// declaredPoll is how often --peers-file is looked at.
const declaredPoll = 2 * time.Second

// declared is what is known of the peers of a file.
type declared struct {
	mu    sync.Mutex
	file  string            // what is wrong with the file
	why   map[string]string // what is wrong with its peers, by object; only of who leads
	read  bool              // the file was readable once
	names []string          // of the peers in it when it was last readable
}

// listed notes which peers the file has.
func (d *declared) listed(want []peering.Declaration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.read, d.names = true, nil
	for _, p := range want {
		d.names = append(d.names, p.Name)
	}
}

// refuseLeave says why a peer that the file has cannot leave: it would be taken
// up again at once. A peer that joined by token leaves, whatever the file says.
func (s *Server) refuseLeave(ctx context.Context, name string) error {
	s.declared.mu.Lock()
	read, listed := s.declared.read, slices.Contains(s.declared.names, name)
	s.declared.mu.Unlock()
	if s.cfg.PeersFile == "" || read && !listed {
		return nil
	}
	peers, _, err := s.mesh.Peers(ctx)
	if err != nil {
		return apiError(err)
	}
	if !slices.ContainsFunc(peers, func(p *keyspacev1.Peer) bool { return p.GetName() == name && len(p.GetDeclared()) > 0 }) {
		return nil
	}
	if !read {
		return status.Errorf(codes.FailedPrecondition, "leave %s: --peers-file %s, which declared it, could not be read yet, and would bring it back; correct the file (hawser status says what is wrong), without the peer", name, s.cfg.PeersFile)
	}
	return status.Errorf(codes.FailedPrecondition, "leave %s: it is declared in --peers-file %s and would be taken up again at once; remove it there, and it leaves by itself", name, s.cfg.PeersFile)
}

// set notes what is wrong with the peers, by object, and reports whether that is
// new.
func (d *declared) set(why map[string]string) (changed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	changed = fmt.Sprint(d.why) != fmt.Sprint(why)
	d.why = why
	return changed
}

// setFile is set of the file itself; empty: nothing is wrong.
func (d *declared) setFile(why string) (changed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	changed = d.file != why
	d.file = why
	return changed
}

func (d *declared) problems(file string) []*hawserv1.Problem {
	d.mu.Lock()
	defer d.mu.Unlock()
	const fix = "correct --peers-file; it is read again by itself"
	var out []*hawserv1.Problem
	if d.file != "" {
		out = append(out, &hawserv1.Problem{Object: file, Problem: d.file, Fix: fix})
	}
	for object, why := range d.why {
		out = append(out, &hawserv1.Problem{Object: object, Problem: why, Fix: fix})
	}
	return out
}

// peersFile is what --peers-file is called in what is told of it.
func (s *Server) peersFile() string { return "--peers-file " + s.cfg.PeersFile }

// keepDeclared reads --peers-file again and again, until the context ends: each
// API server tells what is wrong with its file, and lets no peer leave that is in
// it.
func (s *Server) keepDeclared(ctx context.Context) error {
	if s.cfg.PeersFile == "" {
		return nil
	}
	t := time.NewTicker(declaredPoll)
	defer t.Stop()
	for {
		why := ""
		if _, err := s.readDeclared(); err != nil {
			why = oneLine(err)
		}
		if s.declared.setFile(why) && why != "" {
			s.log.Error("peers are not declared", "file", s.cfg.PeersFile, "problem", why)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// leadDeclared makes the peers what --peers-file says, and again when it changes,
// until the context ends, in the office of the fence alone: of API servers whose
// files differ for a moment one's counts. A file that cannot be read changes
// nothing: an empty one does.
func (s *Server) leadDeclared(ctx context.Context, fence []kvstore.Cmp) error {
	if s.cfg.PeersFile == "" {
		return nil
	}
	defer s.declared.set(nil) // who leads next tells
	return s.repeat(ctx, "declare peers", declaredPoll, func(ctx context.Context) error {
		why := map[string]string{}
		for object, err := range s.declarePeers(ctx, fence) {
			why[object] = oneLine(err)
		}
		if ctx.Err() == nil && s.declared.set(why) && len(why) > 0 {
			s.log.Error("peers are not as declared", "problems", why)
		}
		return nil
	})
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// readDeclared are the peers of the file as it is now.
func (s *Server) readDeclared() (want []peering.Declaration, err error) {
	text, err := os.ReadFile(s.cfg.PeersFile)
	if err != nil {
		return nil, err
	}
	if strings.TrimSpace(string(text)) != "" {
		if want, err = peering.ParseDeclarations(text); err != nil {
			return nil, err
		}
	}
	s.declared.listed(want)
	return want, nil
}

// declarePeers is one look at the file; what is wrong with the file keepDeclared
// tells.
func (s *Server) declarePeers(ctx context.Context, fence []kvstore.Cmp) map[string]error {
	want, err := s.readDeclared()
	if err != nil {
		return nil
	}
	wrong, err := s.mesh.Declare(ctx, want, fence)
	if err != nil {
		return map[string]error{s.peersFile(): err}
	}
	out := map[string]error{}
	for name, err := range wrong {
		out["peer "+name] = err
	}
	return out
}
