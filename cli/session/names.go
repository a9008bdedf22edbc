// SPDX-License-Identifier: Apache-2.0

package session

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/clicontext"
)

// Contexts need not name everybody: that of a remote API server names no agents,
// and a host runs one program or both. Who asks the other one gets these.
var (
	ErrNoAgents    = errors.New("the context names no agents")
	ErrNoAPIServer = errors.New("no API server runs on this host")
)

// ErrSilent is an agent that is there and has not answered in its time.
var ErrSilent = errors.New("its agent does not answer")

// nameTimeout bounds how long a program is asked for its name: commands that do
// not need it should not wait long for one that does not answer.
const nameTimeout = 2 * time.Second

// names are what a program says of itself.
type names struct{ cluster, node string }

// learned is what programs said of themselves, by socket, for all copies of a
// session.
type learned struct {
	mu    sync.Mutex
	names map[string]names
}

// Load reads the context that the flags name. Clusters and nodes that it does
// not name, as that of this host, get the names that their programs say; of
// programs that do not answer they stay empty.
func (s *Session) Load() (*clicontext.Context, error) {
	c, err := clicontext.Load(s.Context)
	if err != nil {
		return nil, &Error{Code: CouldNotAsk, Err: err}
	}
	var wg sync.WaitGroup
	for i := range c.Clusters {
		cl := &c.Clusters[i]
		said := make([]names, len(cl.Nodes)+1)
		if cl.Name == "" && cl.Socket != "" {
			wg.Go(func() { said[0] = s.nameOf(cl.Socket, sayCluster) })
		}
		for k, n := range cl.Nodes {
			if n.Name == "" {
				wg.Go(func() { said[k+1] = s.nameOf(n.Socket, sayNode) })
			}
		}
		wg.Wait()
		for k, n := range said {
			cl.Name = cmp.Or(cl.Name, n.cluster)
			if k > 0 {
				cl.Nodes[k-1].Name = cmp.Or(cl.Nodes[k-1].Name, n.node)
			}
		}
	}
	return c, nil
}

// nameOf asks the program behind a socket for its names, once.
func (s *Session) nameOf(socket string, ask func(context.Context, string) (names, error)) names {
	if s.learned != nil {
		s.learned.mu.Lock()
		known, ok := s.learned.names[socket]
		s.learned.mu.Unlock()
		if ok {
			return known
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), nameTimeout)
	defer cancel()
	said, err := ask(ctx, socket)
	if err == nil && s.learned != nil {
		s.learned.mu.Lock()
		s.learned.names[socket] = said
		s.learned.mu.Unlock()
	}
	return said
}

func sayCluster(ctx context.Context, socket string) (names, error) {
	conn, err := dial(socket)
	if err != nil {
		return names{}, err
	}
	defer func() { _ = conn.Close() }()
	r, err := hawserv1.NewMeshClient(conn).Describe(ctx, &hawserv1.DescribeRequest{})
	return names{cluster: r.GetCluster()}, err
}

func sayNode(ctx context.Context, socket string) (names, error) {
	conn, err := dial(socket)
	if err != nil {
		return names{}, err
	}
	defer func() { _ = conn.Close() }()
	r, err := hawserv1.NewNodeClient(conn).Status(ctx, &hawserv1.StatusRequest{})
	return names{r.GetCluster(), r.GetNode()}, err
}

// Target is the cluster that the flags name. A --node of another cluster names
// that cluster when --cluster is not given.
func (s *Session) Target() (*clicontext.Cluster, error) {
	c, err := s.Load()
	if err != nil {
		return nil, err
	}
	if s.Cluster == "" && s.Node != "" {
		for i := range c.Clusters {
			for _, n := range c.Clusters[i].Nodes {
				if n.Is(s.Node) {
					return &c.Clusters[i], nil
				}
			}
		}
	}
	cl, err := c.Cluster(s.Cluster)
	if err != nil {
		return nil, &Error{Code: WrongUse, Err: err}
	}
	return cl, nil
}

// ClusterName is the name of the target cluster, for who cannot do without.
func (s *Session) ClusterName() (string, error) {
	cl, err := s.Target()
	if err != nil {
		return "", err
	}
	if cl.Name != "" {
		return cl.Name, nil
	}
	// Who does not say its name says here why.
	_, conn, err := s.Mesh()
	if err != nil {
		return "", err
	}
	_ = conn.Close()
	return "", &Error{Code: CouldNotAsk, Err: fmt.Errorf("the API server of this host did not say its cluster's name within %s: is it of the version of this command? See: hawser status", nameTimeout)}
}

// of names a program by what it belongs to; without a name it is this host's.
func of(program, kind, name string) string {
	whose := "this host"
	if name != "" {
		whose = fmt.Sprintf("%s %q", kind, name)
	}
	return strings.TrimPrefix(program+" of "+whose, " of ")
}
