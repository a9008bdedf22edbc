// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy"
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
	vips       map[netip.Addr]*hawserv1.ServiceInfo
	scope      policy.Scope // of the nodes
	mode       policy.Mode
	nodes      []*hawserv1.PolicyRollout // what they told the API server
	// kubeAPIServers are the prefixes that policies call kube-apiserver.
	kubeAPIServers []netip.Prefix
	tunnels        tunnels
}

// learn asks for all that a trace, a lint or a dry run needs.
func learn(ctx context.Context, s *session.Session, addresses bool) (*knowledge, error) {
	cluster, err := s.ClusterName()
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
	k := &knowledge{cluster: cluster}
	policies, err := client.ListPolicies(ctx, &hawserv1.ListPoliciesRequest{})
	if err != nil {
		return nil, err
	}
	k.nodes = policies.GetNodes()
	described, err := client.Describe(ctx, &hawserv1.DescribeRequest{})
	if err != nil {
		return nil, err
	}
	for _, text := range described.GetKubeApiservers() {
		if p, err := netip.ParsePrefix(text); err == nil {
			k.kubeAPIServers = append(k.kubeAPIServers, p)
		}
	}
	for _, p := range policies.GetPolicies() {
		objects, err := api.Parse([]byte(p.GetSource()))
		if err != nil {
			s.Warn("policy %s/%s cannot be read and is left out; nodes go on enforcing what it said before (%v)", p.GetNamespace(), p.GetName(), err)
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
	k.addServices(services.GetServices())
	if !addresses {
		return k, nil
	}
	return k, k.learnAddresses(ctx, s, client)
}

// learnAddresses asks a node for what it knows of addresses, and all nodes for
// their endpoints; where the context names no agents, the API server for what is
// published.
func (k *knowledge) learnAddresses(ctx context.Context, s *session.Session, client hawserv1.MeshClient) error {
	r, err := session.AskNode(ctx, s, hawserv1.NodeClient.ListIPCache, &hawserv1.ListIPCacheRequest{})
	if errors.Is(err, session.ErrNoAgents) {
		s.Warn("no node is asked here: what single endpoints audit (hawser endpoint audit), and what a kernel has no room for, is not known")
		published, err := client.ListAddresses(ctx, &hawserv1.ListAddressesRequest{})
		for _, a := range published.GetAddresses() {
			k.addresses = append(k.addresses, &hawserv1.IPCacheEntry{
				Prefix: a.GetPrefix(), Cluster: a.GetCluster(), Node: a.GetNode(), Workload: a.GetWorkload(), Identity: a.GetIdentity(), Source: "ip",
			})
		}
		if err != nil {
			return err
		}
		return k.addNodes(ctx, client)
	}
	if err != nil {
		return err
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
	return err
}

func (k *knowledge) addServices(services []*hawserv1.ServiceInfo) {
	k.vips = map[netip.Addr]*hawserv1.ServiceInfo{}
	for _, s := range services {
		service := trace.Service{Name: s.GetNamespace() + "/" + s.GetName()}
		for _, b := range s.GetBackends() {
			if a, err := netip.ParseAddr(b.GetIp()); err == nil {
				service.Addrs = append(service.Addrs, a)
			}
		}
		k.services = append(k.services, service)
		for _, text := range s.GetVips() {
			if a, err := netip.ParseAddr(text); err == nil {
				k.vips[a] = s
			}
		}
	}
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

// place is an end with all its addresses; none when they are not known.
type place struct {
	trace.End
	addrs []netip.Addr
}

// end finds who a name means: labels, an identity's number, an address, a
// reserved name, or a pod ([cluster/]namespace/name, or cluster/name).
func (k *knowledge) end(name string) (place, error) {
	if strings.Contains(name, "=") {
		end, err := k.byLabels(name)
		return place{End: end}, err
	}
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		if text, reserved := identity.Number(n).Reserved(); reserved && text == "" {
			return place{}, session.Usage("identity %s is not known; see: hawser identity list", name)
		}
		end, err := k.byNumber(name, identity.Number(n))
		return place{End: end}, err
	}
	if a, err := netip.ParseAddr(name); err == nil {
		end, err := k.byAddress(name, a.Unmap())
		return place{end, []netip.Addr{end.Addr}}, err
	}
	if n, ok := identity.ReservedNumber(name); ok {
		return place{End: trace.End{Name: name, Reserved: n}}, nil
	}
	return k.byWorkload(name)
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
	if s, ok := k.vips[a]; ok {
		return trace.End{}, session.Usage("%s is the address of service %s/%s, and policy is asked about the backend that is chosen: name one of them%s",
			name, s.GetNamespace(), s.GetName(), someBackends(s.GetBackends()))
	}
	for _, e := range k.addresses {
		if p, err := netip.ParsePrefix(e.GetPrefix()); err == nil && p.IsSingleIP() && p.Addr() == a && e.GetSource() != "cidr" {
			end, err := k.byNumber(name, identity.Number(e.GetIdentity()))
			end.Addr = a
			return end, err
		}
	}
	return trace.End{Name: name, Addr: a}, nil
}

// notInKernel says what the node that was asked does instead with an address for
// which its kernel has no room; empty: nothing else.
func (k *knowledge) notInKernel(a netip.Addr) string {
	var best *hawserv1.IPCacheEntry
	bits := -1
	for _, e := range k.addresses {
		if p, err := netip.ParsePrefix(e.GetPrefix()); err == nil && p.Contains(a) && p.Bits() > bits {
			best, bits = e, p.Bits()
		}
	}
	if best.GetKernel() == "" {
		return ""
	}
	return fmt.Sprintf("%s is not judged as below on the node that was asked: the kernel has no room for %s, so endpoints with a policy drop it as \"identity unknown yet\"; see: hawser status", a,
		map[bool]string{true: best.GetPrefix(), false: "a part of " + best.GetPrefix()}[best.GetKernel() == "missing"])
}

// maxNamed bounds how many backends an error names.
const maxNamed = 4

func someBackends(backends []*hawserv1.FrontendBackend) string {
	var names []string
	for _, b := range backends {
		name := b.GetIp()
		if b.GetWorkload() != "" {
			name = b.GetCluster() + "/" + b.GetWorkload()
		}
		if len(names) < maxNamed && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return " (it has none now)"
	}
	return ", such as " + strings.Join(names, ", ")
}

func (k *knowledge) byWorkload(name string) (place, error) {
	var found []place
	var names []string
	for _, e := range k.addresses {
		p, err := netip.ParsePrefix(e.GetPrefix())
		if err != nil || !p.IsSingleIP() || e.GetWorkload() == "" {
			continue
		}
		_, short, _ := strings.Cut(e.GetWorkload(), "/")
		full := e.GetCluster() + "/" + e.GetWorkload()
		if name != full && name != e.GetCluster()+"/"+short && (name != e.GetWorkload() || e.GetCluster() != k.cluster) {
			continue
		}
		if i := slices.Index(names, full); i >= 0 {
			found[i].addrs = append(found[i].addrs, p.Addr())
			continue
		}
		end, err := k.byNumber(full, identity.Number(e.GetIdentity()))
		if err != nil {
			return place{}, err
		}
		end.Addr = p.Addr()
		found, names = append(found, place{end, []netip.Addr{end.Addr}}), append(names, full)
	}
	switch len(found) {
	case 0:
		return place{}, session.Usage("%q is no pod, address, identity, set of labels or reserved name; pods are [cluster/]namespace/name, as in: hawser endpoint list", name)
	case 1:
		return found[0], nil
	}
	return place{}, session.Usage("%q may be any of %s", name, strings.Join(names, ", "))
}
