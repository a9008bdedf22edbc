// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
)

// declaredPoll is how often --peers-file is looked at.
const declaredPoll = 2 * time.Second

// declared is what is wrong with the peers of a file.
type declared struct {
	mu  sync.Mutex
	why map[string]string // by object
}

func (d *declared) set(why map[string]string) (changed bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	changed = fmt.Sprint(d.why) != fmt.Sprint(why)
	d.why = why
	return changed
}

func (d *declared) problems() []*hawserv1.Problem {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []*hawserv1.Problem
	for object, why := range d.why {
		out = append(out, &hawserv1.Problem{Object: object, Problem: why, Fix: "correct --peers-file; it is read again by itself"})
	}
	return out
}

// keepDeclared makes the peers what --peers-file says, and again when it
// changes, until the context ends. A file that cannot be read changes nothing:
// an empty one does.
func (s *Server) keepDeclared(ctx context.Context) error {
	if s.cfg.PeersFile == "" {
		return nil
	}
	t := time.NewTicker(declaredPoll)
	defer t.Stop()
	for {
		why := map[string]string{}
		for object, err := range s.declarePeers(ctx) {
			why[object] = strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		if ctx.Err() == nil && s.declared.set(why) && len(why) > 0 {
			s.log.Error("peers are not as declared", "problems", why)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

func (s *Server) declarePeers(ctx context.Context) map[string]error {
	file := "--peers-file " + s.cfg.PeersFile
	text, err := os.ReadFile(s.cfg.PeersFile)
	if err != nil {
		return map[string]error{file: err}
	}
	var want []peering.Declaration
	if strings.TrimSpace(string(text)) != "" {
		if want, err = peering.ParseDeclarations(text); err != nil {
			return map[string]error{file: err}
		}
	}
	wrong, err := s.mesh.Declare(ctx, want)
	if err != nil {
		return map[string]error{file: err}
	}
	out := map[string]error{}
	for name, err := range wrong {
		out["peer "+name] = err
	}
	return out
}
