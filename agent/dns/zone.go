// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	wire "github.com/miekg/dns"
)

// ttl is for how long answers may be kept, and that a name does not exist.
// Addresses of services do not change, but services and workloads come and go.
const ttl = 5 // seconds

// found is what a name means.
type found struct {
	addrs  []netip.Addr
	exists bool
	// unsure says that the name was not found, but not all is known yet.
	unsure bool
}

// inZone answers a question below Zone.
func (s *Server) inZone(q *wire.Msg) *wire.Msg {
	r := reply(q)
	r.Authoritative = true
	question := q.Question[0]
	labels := wire.SplitDomainName(strings.ToLower(question.Name))
	f := s.lookup(labels[:len(labels)-1])
	switch {
	case f.unsure:
		r.Authoritative, r.Rcode = false, wire.RcodeServerFailure
		return r
	case !f.exists:
		r.Rcode = wire.RcodeNameError
	}
	if question.Qtype == wire.TypeSOA && len(labels) == 1 {
		r.Answer = []wire.RR{soa()}
		return r
	}
	r.Answer = records(question, f.addrs)
	if len(r.Answer) == 0 {
		r.Ns = []wire.RR{soa()}
	}
	return r
}

// lookup finds a name by its labels, without the zone:
//
//	service.namespace             the addresses of the service; of a headless one, its backends
//	workload.namespace            a workload of the own cluster, if no service has the name
//	cluster.service.namespace     the service's backends in one cluster
//	cluster.workload.namespace    a workload of a cluster, if no service has the name
//	workload.service.namespace    one backend of a service
func (s *Server) lookup(labels []string) found {
	own, all := s.cfg.Names.Known()
	switch len(labels) {
	case 0:
		return found{exists: true}
	case 1:
		ok := s.cfg.Names.Namespace(labels[0])
		return found{exists: ok, unsure: !ok && !own}
	case 2:
		f := s.plain(labels[1], labels[0])
		f.unsure = !f.exists && !own
		return f
	case 3:
		f := s.qualified(labels[0], labels[2], labels[1])
		f.unsure = !f.exists && !all
		return f
	}
	return found{}
}

func (s *Server) plain(namespace, name string) found {
	vips, ok := s.cfg.Names.Service(namespace, name)
	if ok && len(vips) > 0 {
		return found{addrs: vips, exists: true}
	}
	if ok {
		return found{addrs: addresses(best(s.cfg.Names.Backends(namespace, name))), exists: true}
	}
	addrs := s.cfg.Names.Workload("", namespace, name)
	return found{addrs: addrs, exists: len(addrs) > 0}
}

func (s *Server) qualified(which, namespace, name string) found {
	_, isService := s.cfg.Names.Service(namespace, name)
	isCluster := s.cfg.Names.Cluster(which)
	if !isService {
		if !isCluster {
			return found{}
		}
		addrs := s.cfg.Names.Workload(which, namespace, name)
		return found{addrs: addrs, exists: len(addrs) > 0}
	}
	var some []Backend
	for _, b := range s.cfg.Names.Backends(namespace, name) {
		if isCluster && b.Cluster == which || !isCluster && b.Workload == which {
			some = append(some, b)
		}
	}
	if !isCluster && slices.ContainsFunc(some, func(b Backend) bool { return b.Own }) {
		// A peer cannot take the name of a backend of ours.
		some = slices.DeleteFunc(some, func(b Backend) bool { return !b.Own })
	}
	// A cluster that has no backend left is still a name.
	return found{addrs: addresses(best(some)), exists: isCluster || len(some) > 0}
}

// best are the backends of the lowest rank of their family, as for connections.
func best(all []Backend) []Backend {
	lowest := map[bool]int{}
	for _, b := range all {
		if rank, ok := lowest[b.Addr.Is4()]; !ok || b.Rank < rank {
			lowest[b.Addr.Is4()] = b.Rank
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(b Backend) bool { return b.Rank != lowest[b.Addr.Is4()] })
}

// addresses are those of backends, each once, in random order: resolvers take
// the first.
func addresses(backends []Backend) []netip.Addr {
	out := make([]netip.Addr, 0, len(backends))
	for _, b := range backends {
		out = append(out, b.Addr)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	out = slices.Compact(out)
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}

// records are the addresses of the family that is asked for. Whoever asks for
// anything gets any (RFC 8482).
func records(q wire.Question, addrs []netip.Addr) []wire.RR {
	var out []wire.RR
	for _, a := range addrs {
		a = a.Unmap()
		head := wire.RR_Header{Name: q.Name, Class: wire.ClassINET, Ttl: ttl}
		switch {
		case a.Is4() && (q.Qtype == wire.TypeA || q.Qtype == wire.TypeANY):
			head.Rrtype = wire.TypeA
			out = append(out, &wire.A{Hdr: head, A: a.AsSlice()})
		case a.Is6() && (q.Qtype == wire.TypeAAAA || q.Qtype == wire.TypeANY):
			head.Rrtype = wire.TypeAAAA
			out = append(out, &wire.AAAA{Hdr: head, AAAA: a.AsSlice()})
		}
	}
	return out
}

// soa says who answers for the zone, and for how long a name that is not there
// may be taken as such.
func soa() wire.RR {
	return &wire.SOA{
		Hdr: wire.RR_Header{Name: Zone + ".", Rrtype: wire.TypeSOA, Class: wire.ClassINET, Ttl: ttl},
		Ns:  "dns." + Zone + ".", Mbox: "hostmaster." + Zone + ".",
		Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: ttl,
	}
}
