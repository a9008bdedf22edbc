// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy/api"
	"github.com/hawser-mesh/hawser/policy/trace"
)

// knowledge is what a cluster's API server and one of its nodes know.
type knowledge struct {
	cluster    string
	objects    []api.Object
	identities []trace.Identity
	addresses  []*hawserv1.IPCacheEntry
	audited    map[netip.Addr]bool // addresses of endpoints told to audit
	services   []trace.Service
}

// learn asks for all that a trace, a lint or a dry run needs.
func learn(ctx context.Context, s *session.Session, addresses bool) (*knowledge, error) {
	target, err := s.Target()
	if err != nil {
		return nil, err
	}
	client, conn, err := s.Mesh()
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := s.Deadline(ctx)
	defer cancel()
	k := &knowledge{cluster: target.Name}
	policies, err := client.ListPolicies(ctx, &hawserv1.ListPoliciesRequest{})
	if err != nil {
		return nil, err
	}
	for _, p := range policies.GetPolicies() {
		objects, err := api.Parse([]byte(p.GetSource()))
		if err != nil {
			s.Warn("policy %s/%s is not enforced by nodes of this version: %v", p.GetNamespace(), p.GetName(), err)
		}
		k.objects = append(k.objects, objects...)
	}
	ids, err := client.ListIdentities(ctx, &hawserv1.ListIdentitiesRequest{})
	if err != nil {
		return nil, err
	}
	for _, i := range ids.GetIdentities() {
		ls, err := labels.ParseSet(i.GetLabels(), labels.Any)
		cluster, _ := ls.Get(labels.Mesh, labels.ClusterKey)
		if err == nil && cluster != "" {
			k.identities = append(k.identities, trace.Identity{Number: identity.Number(i.GetNumber()), Cluster: cluster, Labels: ls})
		}
	}
	slices.SortFunc(k.identities, func(a, b trace.Identity) int { return cmp.Compare(a.Number, b.Number) })
	services, err := client.ListServices(ctx, &hawserv1.ListServicesRequest{})
	if err != nil {
		return nil, err
	}
	for _, s := range services.GetServices() {
		service := trace.Service{Name: s.GetNamespace() + "/" + s.GetName()}
		for _, b := range s.GetBackends() {
			if a, err := netip.ParseAddr(b.GetIp()); err == nil {
				service.Addrs = append(service.Addrs, a)
			}
		}
		k.services = append(k.services, service)
	}
	if !addresses {
		return k, nil
	}
	r, err := session.AskNode(ctx, s, hawserv1.NodeClient.ListIPCache, &hawserv1.ListIPCacheRequest{})
	if err != nil {
		return nil, err
	}
	k.addresses = r.GetEntries()
	endpoints, err := session.Gather(ctx, s, func(ctx context.Context, n session.NodeConn) ([]*hawserv1.Endpoint, error) {
		r, err := n.ListEndpoints(ctx, &hawserv1.ListEndpointsRequest{})
		return r.GetEndpoints(), err
	})
	k.audited = map[netip.Addr]bool{}
	for _, e := range endpoints {
		for _, text := range e.GetAddresses() {
			if a, err := netip.ParseAddr(text); err == nil && e.GetPolicyAudit() {
				k.audited[a] = true
			}
		}
	}
	return k, err
}

// served says of each service whether it has backends.
func (k *knowledge) served() map[string]bool {
	out := map[string]bool{}
	for _, s := range k.services {
		out[s.Name] = len(s.Addrs) > 0
	}
	return out
}

// addAddresses tells the identities' addresses.
func (k *knowledge) addAddresses() {
	at := map[identity.Number]int{}
	for i, id := range k.identities {
		at[id.Number] = i
	}
	for _, e := range k.addresses {
		p, err := netip.ParsePrefix(e.GetPrefix())
		if i, ok := at[identity.Number(e.GetIdentity())]; ok && err == nil && p.IsSingleIP() {
			k.identities[i].Addrs = append(k.identities[i].Addrs, p.Addr())
		}
	}
}

// end finds who a name means: labels, an identity's number, an address, a
// reserved name, or a pod ([cluster/]namespace/name, or cluster/name).
func (k *knowledge) end(name string) (trace.End, error) {
	if strings.Contains(name, "=") {
		return k.byLabels(name)
	}
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return k.byNumber(name, identity.Number(n))
	}
	if a, err := netip.ParseAddr(name); err == nil {
		return k.byAddress(name, a.Unmap())
	}
	if n, ok := identity.ReservedNumber(name); ok {
		return trace.End{Name: name, Reserved: n}, nil
	}
	return k.byWorkload(name)
}

func (k *knowledge) byLabels(name string) (trace.End, error) {
	ls, err := labels.ParseSet(strings.Split(name, ","), labels.CNI)
	if err != nil {
		return trace.End{}, session.Usage("%v", err)
	}
	with := labels.New(labels.Label{Source: labels.Mesh, Key: labels.ClusterKey, Value: k.cluster},
		labels.Label{Source: labels.Mesh, Key: labels.NamespaceKey, Value: "default"}).With(ls...)
	return trace.End{Name: name, Labels: with}, nil
}

func (k *knowledge) byNumber(name string, n identity.Number) (trace.End, error) {
	if _, reserved := n.Reserved(); reserved {
		return trace.End{Name: name, Reserved: n}, nil
	}
	for _, i := range k.identities {
		if i.Number == n {
			return trace.End{Name: name, Labels: i.Labels}, nil
		}
	}
	return trace.End{}, session.Usage("identity %s is not known; see: hawser identity list", name)
}

func (k *knowledge) byAddress(name string, a netip.Addr) (trace.End, error) {
	for _, e := range k.addresses {
		if p, err := netip.ParsePrefix(e.GetPrefix()); err == nil && p.IsSingleIP() && p.Addr() == a && e.GetSource() != "cidr" {
			end, err := k.byNumber(name, identity.Number(e.GetIdentity()))
			end.Addr = a
			return end, err
		}
	}
	return trace.End{Name: name, Addr: a}, nil
}

func (k *knowledge) byWorkload(name string) (trace.End, error) {
	var found []trace.End
	var names []string
	for _, e := range k.addresses {
		p, err := netip.ParsePrefix(e.GetPrefix())
		if err != nil || !p.IsSingleIP() || e.GetWorkload() == "" {
			continue
		}
		_, short, _ := strings.Cut(e.GetWorkload(), "/")
		full := e.GetCluster() + "/" + e.GetWorkload()
		if name != full && name != e.GetCluster()+"/"+short && (name != e.GetWorkload() || e.GetCluster() != k.cluster) || slices.Contains(names, full) {
			continue
		}
		end, err := k.byNumber(full, identity.Number(e.GetIdentity()))
		if err != nil {
			return end, err
		}
		end.Addr = p.Addr()
		found, names = append(found, end), append(names, full)
	}
	switch len(found) {
	case 0:
		return trace.End{}, session.Usage("%q is no pod, address, identity, set of labels or reserved name; pods are [cluster/]namespace/name, as in: hawser endpoint list", name)
	case 1:
		return found[0], nil
	}
	return trace.End{}, session.Usage("%q may be any of %s", name, strings.Join(names, ", "))
}

// port reads "80/tcp", "80" or "icmp".
func port(text string) (uint8, uint16, error) {
	number, protocol, given := strings.Cut(strings.ToLower(text), "/")
	if number == "icmp" && !given {
		return api.ICMP, api.ICMPPort(8), nil
	}
	proto, ok := map[string]uint8{"tcp": api.TCP, "udp": api.UDP, "sctp": api.SCTP}[cmp.Or(protocol, "tcp")]
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 || !ok {
		return 0, 0, fmt.Errorf("%q is not a port: want 80/tcp, 53/udp, 38412/sctp or icmp", text)
	}
	return proto, uint16(n), nil
}
