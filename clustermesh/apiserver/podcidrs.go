// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/ipam"
	"github.com/hawser-mesh/hawser/kvstore"
)

// podCIDRsEvery is how often ranges are looked at while no node comes.
const podCIDRsEvery = 10 * time.Second

// registrar gives nodes their pod CIDRs, and keeps who has which. What a node was
// told by its operator it owns, too, unless another does.
type registrar struct {
	s       *Server
	fence   []kvstore.Cmp
	decided *decisions
	read    int64 // revision at which the owners are known
}

// owners are who has which range, as it is stored.
type owners map[netip.Prefix]string

// clash is the range of another node that p overlaps.
func (o owners) clash(p netip.Prefix, node string) (other netip.Prefix, found bool) {
	for q, owner := range o {
		if owner != node && q.Overlaps(p) {
			return q, true
		}
	}
	return netip.Prefix{}, false
}

// of are the ranges of a node, sorted.
func (o owners) of(node string) (out []string) {
	for p, owner := range o {
		if owner == node {
			out = append(out, p.String())
		}
	}
	slices.Sort(out)
	return out
}

// has reports whether a node has a range of a family.
func (o owners) has(node, family string) bool {
	for p, owner := range o {
		if owner == node && familyOf(p) == family {
			return true
		}
	}
	return false
}

func (s *Server) podCIDRKey(p netip.Prefix) kvstore.Key {
	return kvstore.NewKey(kvstore.Private, s.cfg.Cluster, kvstore.KindPodCIDR, p.String())
}

// podCIDROwners reads who has which range.
func (s *Server) podCIDROwners(ctx context.Context) (owners, error) {
	rows, err := list[*wrapperspb.StringValue](ctx, s, kvstore.Private, s.cfg.Cluster, kvstore.KindPodCIDR)
	out := owners{}
	for _, r := range rows {
		if p, err := netip.ParsePrefix(r.key.Names[0]); err == nil {
			out[p] = r.msg.GetValue()
		}
	}
	return out, err
}

// step claims what nodes announce, and gives each node that is present and has
// no range one.
func (r *registrar) step(ctx context.Context) error {
	_, rev, err := r.s.kv.Get(ctx, r.s.podCIDRKey(r.s.cfg.PodCIDRs[0]).String())
	if err != nil {
		return err
	}
	r.read = rev
	own, err := r.s.podCIDROwners(ctx)
	if err != nil {
		return err
	}
	nodes, err := list[*keyspacev1.Node](ctx, r.s, kvstore.State, r.s.cfg.Cluster, kvstore.KindNode)
	if err != nil {
		return err
	}
	var problems []*hawserv1.Problem
	var errs []error
	for _, n := range nodes {
		for _, text := range n.msg.GetPodCidrs() {
			p, err := netip.ParsePrefix(text)
			if err != nil || own[p] == n.msg.GetName() {
				continue
			}
			if p := r.s.outside(n.msg.GetName(), p); p != nil {
				problems = append(problems, p)
				continue
			}
			if other, taken := own.clash(p, n.msg.GetName()); taken {
				problems = append(problems, overlapping(n.msg.GetName(), p, other, own[other]))
				continue
			}
			errs = append(errs, r.give(ctx, own, n.msg.GetName(), p, kvstore.AtRevision(n.kv.Key, n.kv.ModRevision)))
		}
	}
	for _, name := range r.s.watchman.presentNodes() {
		announced := slices.ContainsFunc(nodes, func(n stored[*keyspacev1.Node]) bool { return n.msg.GetName() == name })
		for _, family := range r.missing(own, name, announced) {
			err := r.allocate(ctx, own, name, family)
			if errors.Is(err, ipam.ErrNoRange) {
				problems = append(problems, full(name, family, err))
				continue
			}
			errs = append(errs, err)
		}
	}
	errs = append(errs, r.tell(ctx, own))
	r.s.ranges.set(problems)
	return errors.Join(errs...)
}

// missing are the families of which a node is to be given a range: those that the
// cluster has and the node has none of. A node that announces itself was told its
// IPv4 range by its operator.
func (r *registrar) missing(own owners, node string, announced bool) (out []string) {
	if !announced && !own.has(node, ipv4) {
		out = append(out, ipv4)
	}
	if len(ofFamily(r.s.cfg.PodCIDRs, ipv6)) > 0 && !own.has(node, ipv6) {
		out = append(out, ipv6)
	}
	return out
}

func overlapping(node string, p, other netip.Prefix, owner string) *hawserv1.Problem {
	if owner == externalOwner {
		return &hawserv1.Problem{
			Object: "node " + node, Problem: fmt.Sprintf("its pod CIDR %s overlaps %s, which is declared behind an external tunnel endpoint", p, other),
			Fix: "start its agent with another --pod-cidr, or without; or take the declaration back: hawser vtep delete " + other.String(),
		}
	}
	return &hawserv1.Problem{
		Object: "node " + node, Problem: fmt.Sprintf("its pod CIDR %s overlaps %s, which belongs to node %s", p, other, owner),
		Fix: "start its agent with another --pod-cidr, or without; if the other node is gone: hawser node forget " + owner + " --yes",
	}
}

func full(node, family string, err error) *hawserv1.Problem {
	what, size := "a pod CIDR", "--pod-cidr-size"
	if family == ipv6 {
		what, size = "an IPv6 pod CIDR", "--pod-cidr-size-ipv6"
	}
	return &hawserv1.Problem{
		Object: "node " + node, Problem: "it waits for " + what + ": " + err.Error(),
		Fix: "give the API server another --pod-cidr, forget nodes that are gone (hawser node forget), or make ranges smaller: " + size,
	}
}

// allocate finds a range for a node and gives it, if the node is still there.
func (r *registrar) allocate(ctx context.Context, own owners, node, family string) error {
	presence, found, err := get[*keyspacev1.Presence](ctx, r.s, kvstore.NewKey(kvstore.Local, r.s.cfg.Cluster, kvstore.KindPresence, node))
	if err != nil || !found {
		return err
	}
	if family == ipv4 && presence.msg.GetHasPodCidr() || family == ipv6 && presence.msg.GetHasPodCidr6() {
		return nil // it is about to announce the one that it has
	}
	var taken []netip.Prefix
	for p := range own {
		if familyOf(p) == family {
			taken = append(taken, p)
		}
	}
	p, err := ipam.NextRange(ofFamily(r.s.cfg.PodCIDRs, family), r.s.cfg.podCIDRSize(family), taken)
	if err != nil {
		return err
	}
	if err := r.give(ctx, own, node, p, kvstore.AtRevision(presence.kv.Key, presence.kv.ModRevision)); err != nil {
		return err
	}
	r.s.log.Info("node has a pod CIDR", "node", node, "cidr", p)
	return nil
}

// give makes a node the owner of a range that nobody owns, and tells it, while
// what shows that the node is there has not changed.
func (r *registrar) give(ctx context.Context, own owners, node string, p netip.Prefix, there kvstore.Cmp) error {
	key := r.s.podCIDRKey(p)
	op, err := put(key, wrapperspb.String(node))
	if err != nil {
		return err
	}
	after := append(own.of(node), p.String())
	slices.Sort(after)
	ops, cmps, err := r.s.nodeConfigOps(ctx, node, func(c *keyspacev1.NodeConfig) { c.PodCidrs = after })
	if err != nil {
		return err
	}
	// Nobody else, as an external tunnel endpoint, took a range meanwhile.
	quiet := kvstore.NoneAfter(kvstore.KindPrefix(kvstore.Private, r.s.cfg.Cluster, kvstore.KindPodCIDR), r.read)
	cmps = append(append(cmps, kvstore.Absent(key.String()), quiet, there), r.fence...)
	res, err := r.s.kv.Txn(ctx, cmps, append(ops, op), nil)
	if err == nil && !res.Succeeded {
		err = fmt.Errorf("pod CIDR %s of node %s: %w", p, node, errRace)
	}
	if err == nil {
		own[p], r.read = node, res.Revision
	}
	return err
}

// run steps when a node comes, when somebody changes what was decided for one, and
// at times, until the context ends.
func (r *registrar) run(ctx context.Context) error {
	for {
		if err := r.step(ctx); err != nil && ctx.Err() == nil {
			r.s.log.Warn("pod CIDRs of nodes", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.s.watchman.came:
		case <-r.decided.changed:
		case <-time.After(podCIDRsEvery):
		}
	}
}

// presentNodes are the nodes that hold their presence, sorted.
func (w *watchman) presentNodes() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for n := range w.present {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

// rangeProblems are what keeps nodes from their ranges, for status.
type rangeProblems struct {
	mu  sync.Mutex
	all []*hawserv1.Problem
}

func (p *rangeProblems) set(all []*hawserv1.Problem) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = all
}

func (p *rangeProblems) problems() []*hawserv1.Problem {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.all)
}
