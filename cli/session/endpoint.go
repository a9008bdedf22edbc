// SPDX-License-Identifier: Apache-2.0

package session

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
)

// Endpoints asks the agents for their endpoints, each with its node and cluster.
func (s *Session) Endpoints(ctx context.Context) ([]*hawserv1.Endpoint, error) {
	return Gather(ctx, s, endpointsOf)
}

func endpointsOf(ctx context.Context, n NodeConn) ([]*hawserv1.Endpoint, error) {
	r, err := n.ListEndpoints(ctx, &hawserv1.ListEndpointsRequest{})
	return r.GetEndpoints(), err
}

// Endpoint asks the agents for the endpoint that NAME, NAMESPACE/NAME,
// CLUSTER/NAMESPACE/NAME, an address, or an id of its node means. With it comes the
// session that asks its node only. What means several is wrong use; what is found
// nowhere while an agent did not answer could not be asked.
func (s *Session) Endpoint(ctx context.Context, what string) (*hawserv1.Endpoint, *Session, error) {
	if what == "" {
		return nil, nil, Usage("an endpoint's name, address or id is empty; see: hawser endpoint list")
	}
	one, name := *s, what
	if strings.Count(what, "/") > 1 {
		cluster, rest, _ := strings.Cut(what, "/")
		if s.Cluster != "" && s.Cluster != cluster {
			return nil, nil, Usage("endpoint %q: --cluster says %q", what, s.Cluster)
		}
		one.Cluster, name = cluster, rest
	}
	rows, failed, err := gather(ctx, &one, endpointsOf)
	if err != nil {
		s.warnOf(failed)
		return nil, nil, err
	}
	e, err := pickEndpoint(rows, name)
	if ExitCode(err) == No && len(failed) > 0 {
		return nil, nil, &Error{Code: CouldNotAsk, Err: fmt.Errorf("no endpoint %q where an agent answers; not asked: %w", name, errors.Join(failed...))}
	}
	s.warnOf(failed)
	if err != nil {
		return nil, nil, err
	}
	one.Cluster, one.Node = e.GetCluster(), e.GetNode()
	return e, &one, nil
}

func pickEndpoint(rows []*hawserv1.Endpoint, what string) (*hawserv1.Endpoint, error) {
	var found []*hawserv1.Endpoint
	var where []string
	for _, e := range rows {
		name := e.GetNamespace() + "/" + e.GetName()
		if what == e.GetName() || what == name || what == fmt.Sprint(e.GetId()) || hasAddress(e, what) {
			found = append(found, e)
			where = append(where, fmt.Sprintf("%s (id %d on %s)", name, e.GetId(), e.GetNode()))
		}
	}
	switch len(found) {
	case 0:
		return nil, Answer("no endpoint %q; see: hawser endpoint list", what)
	case 1:
		return found[0], nil
	}
	return nil, Usage("%q is more than one endpoint: %s; give NAMESPACE/NAME, an address, or --node", what, strings.Join(where, ", "))
}

func hasAddress(e *hawserv1.Endpoint, what string) bool {
	a, err := netip.ParseAddr(what)
	if err != nil {
		return false
	}
	for _, text := range e.GetAddresses() {
		if has, err := netip.ParseAddr(text); err == nil && has == a {
			return true
		}
	}
	return false
}
