/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* from_overlay: ingress of the underlay device. Tunnelled packets are checked,
 * judged, stripped and delivered, or go up to a device that strips them
 * (from_tunnel.c); packets to local pods that came without a tunnel are judged as
 * world; all others are the host's and pass.
 *
 * Everything is decided on the packet as it came; it is stripped last. */
#include "lib/deliver.h"
#include "lib/event.h"
#include "lib/masquerade.h"
#include "lib/probe.h"
#include "lib/related.h"
#include "lib/scratch.h"
#include "lib/slots.h"

/* What a packet from outside this node goes through, tunnelled or not. */
struct arrival {
	struct endpoint *rx; /* NULL: this node itself */
	__u32 hop;           /* the sender's node id, or HOP_WORLD */
	__u32 epoch;         /* of the source's address */
	__u32 claimed;       /* the identity that the packet came with */
	__u64 verdict;       /* the word to cache */
};

static __always_inline __u64 arrival_word(const struct flow *f, const struct arrival *a,
                                          __u64 rules)
{
	return verdict_word(f, a->rx ? rules : 1, a->epoch, a->claimed);
}

static __always_inline int arrival_judge(struct packet *p, const struct flow *f, struct arrival *a)
{
	__u8 reply = f->dir == FLOW_REPLY;
	__u64 rules = 0;

	if (!a->rx) {
		a->verdict = arrival_word(f, a, 0);
		return 0; /* the host has no policy */
	}
	rules = rules_word(a->rx->rule_set);
	a->verdict = arrival_word(f, a, rules);
	return policy_verdict(p, a->rx, rules, reply ? DIR_EGRESS : DIR_INGRESS, p->src_id,
	                      p->t.saddr, reply ? p->t.sport : p->t.dport);
}

/* Records the packet: a new entry, or the old one with a new outcome. */
static __always_inline int arrival_record(struct packet *p, struct flow *f, struct arrival *a,
                                          struct ct_entry **e)
{
	__u16 flags = a->hop == HOP_WORLD ? CT_WORLD : 0;
	struct ct_entry fresh;
	int ret;

	if (!*e) {
		ct_init(&fresh, p, f, flags);
		ct_cache(&fresh, FLOW_FORWARD, a->verdict, hop_word(a->hop, a->epoch));
		return ct_create(p, f, &fresh);
	}
	if (f->half_open) {
		ret = ct_advance(p, f, e);
		if (ret < 0)
			return ret;
	}
	(*e)->flags = ((*e)->flags & ~CT_WORLD) | flags;
	ct_cache(*e, f->dir, a->verdict, hop_word(a->hop, a->epoch));
	ct_touch(*e, p, f->dir);
	return 0;
}

static __always_inline int arrival_send(struct __sk_buff *skb, struct packet *p,
                                        const struct arrival *a)
{
	return a->rx ? to_endpoint(skb, p, a->rx) : to_own_host(skb, p);
}

static __always_inline int is_own_address(__be32 a)
{
	struct ip_entry *ip;

	if (a == node_addr4)
		return 1;
	ip = ipcache_exact4(a);
	return ip && ip->flags & IP_HOST;
}

/* Whether nodes of the mesh may ask for an address of this node. */
static __always_inline int is_mesh_address(__be32 a)
{
	struct ip_entry *ip;

	if (a == node_addr4)
		return 1;
	ip = ipcache_exact4(a);
	return ip && (ip->flags & (IP_HOST | IP_LOCAL)) == IP_HOST;
}

/* Whether the entry's outcome holds: same sender node, same identity, nothing
 * changed since. */
static __always_inline int tunnel_cached(struct packet *p, const struct flow *f, struct ct_entry *e,
                                         struct arrival *a)
{
	__u64 rules = a->rx ? rules_word(a->rx->rule_set) : 0;
	__u8 dir = f->dir & 1;
	__u64 hop = READ_ONCE(e->hop[dir]);
	struct node *node = node_by_id(hop >> 32);

	if (!node || node->addr.w[3] != p->outer || e->flags & CT_WORLD)
		return 0;
	a->hop = hop >> 32;
	return (__u32)hop == a->epoch && READ_ONCE(e->verdict[dir]) == arrival_word(f, a, rules);
}

/* What is for no pod here is this node's only if it has the address. */
static __always_inline void name_destination(struct packet *p, const struct arrival *a)
{
	if (!a->rx && !is_own_address(p->t.daddr))
		p->dst_id = ID_UNKNOWN;
}

/* Whether an external endpoint sends what nobody here has asked for. */
static __always_inline int opens_from_external(const struct flow *f, const struct ct_entry *e,
                                               const struct node *node)
{
	return node->cluster == CLUSTER_EXTERNAL && !(e && f->dir == FLOW_REPLY);
}

static __always_inline int tunnel_slow(struct packet *p, struct flow *f, struct ct_entry **e,
                                       struct arrival *a)
{
	struct node *node;
	int ret;

	name_destination(p, a);
	a->hop = node_id_by_addr4(p->outer);
	node = node_by_id(a->hop);
	if (!node)
		return DROP(p, DROP_UNKNOWN_SENDER);
	ret = check_sender(p, a->hop, node);
	if (ret < 0)
		return ret;
	if (!a->rx && (!is_mesh_address(p->t.daddr) || opens_from_external(f, *e, node)))
		return DROP(p, DROP_UNKNOWN_DESTINATION);
	if (*e && (ct_reopened(*e, p) || ((*e)->flags & CT_WORLD && f->dir == FLOW_FORWARD))) {
		ct_delete(f);
		*e = NULL;
	}
	if (!*e)
		f->dir = FLOW_FORWARD;
	if (is_unasked(p, f))
		return DROP(p, DROP_UNASKED_REPLY);
	ret = arrival_judge(p, f, a);
	return ret < 0 ? ret : arrival_record(p, f, a, e);
}

/* An ICMP error from the tunnel: its sender is checked, and that he knows of the
 * quoted packet; policy is asked about that one's flow. */
static __always_inline int tunnel_related(struct __sk_buff *skb, struct packet *p, __u32 off,
                                          struct arrival *a)
{
	struct tuple4 quoted = {};
	struct flow f = {};
	__u32 sender = node_id_by_addr4(p->outer);
	struct node *node = node_by_id(sender);
	struct ct_entry *e;
	__be32 vip = 0;
	__be16 port = 0;
	int ret;

	name_destination(p, a);
	if (!node)
		return DROP(p, DROP_UNKNOWN_SENDER);
	ret = check_sender(p, sender, node);
	if (ret < 0)
		return ret;
	pull(skb, off + 2 * IP_HLEN + sizeof(struct icmphdr) + sizeof(struct udphdr));
	e = related_flow(skb, off, p, &f, &quoted);
	if (!e || e->flags & CT_WORLD || !knows_packet(p, sender, quoted.daddr))
		return DROP(p, DROP_UNRELATED_ICMP);
	if (!a->rx && !is_mesh_address(p->t.daddr))
		return DROP(p, DROP_UNKNOWN_DESTINATION);
	ret = a->rx ? related_to(p, &f, &quoted) : 0;
	if (ret < 0)
		return ret;
	if (e->flags & CT_NAT && f.dir == FLOW_FORWARD) {
		vip = e->nat_addr.w[3];
		port = e->nat_port;
	}
	ret = off == TUNNEL_INNER ? tunnel_strip(skb, p) : 0;
	if (!ret && vip)
		ret = related_nat4(skb, p, QUOTED_DESTINATION, vip, port);
	return ret < 0 ? ret : arrival_send(skb, p, a);
}

/* What was in the tunnel, with the IP header at off: behind the tunnel's headers,
 * which go last, or where a device has taken them off. outer and src_id are known. */
static __always_inline int from_sender(struct __sk_buff *skb, struct packet *p, __u32 off)
{
	struct arrival a = {};
	struct flow f = {};
	struct ct_entry *e;
	int ret;

	a.rx = endpoint_by_addr4(p->t.daddr);
	p->dst_id = a.rx ? a.rx->identity : ID_HOST;
	p->endpoint = a.rx ? a.rx->id : 0;
	if (unlikely(p->icmp_error))
		return tunnel_related(skb, p, off, &a);
	a.claimed = p->src_id;
	a.epoch = ip_epoch4(p->t.saddr);
	flow_key(&f, &p->t);
	e = ct_find(&f);
	if (e && !ct_steps(&f, e) && !ct_reopened(e, p) && !is_unasked(p, &f) &&
	    tunnel_cached(p, &f, e, &a)) {
		ct_touch(e, p, f.dir);
	} else {
		ret = tunnel_slow(p, &f, &e, &a);
		if (ret < 0)
			return ret;
	}
	if (off == TUNNEL_INNER) {
		ret = tunnel_strip(skb, p);
		if (ret < 0)
			return ret;
	}
	ret = answer_nat4(skb, p, &f, e);
	return ret < 0 ? ret : arrival_send(skb, p, &a);
}

static __always_inline int tunnelled(struct __sk_buff *skb, struct packet *p)
{
	struct tunnel_headers *h;
	struct ethhdr *inner;
	int ret;

	pull(skb, TUNNEL_INNER + IP_HLEN + L4_MAX);
	h = data(skb) + ETH_HLEN;
	if ((void *)(h + 1) > data_end(skb) || h->vxlan.flags != VXLAN_VNI_VALID)
		return DROP(p, DROP_MALFORMED);
	p->src_id = bpf_ntohl(h->vxlan.vni) >> 8;
	inner = (struct ethhdr *)h->inner;
	if (inner->proto != bpf_htons(ETH_P_IP)) {
		if (inner->proto == bpf_htons(ETH_P_IPV6))
			bpf_tail_call(skb, &slots, SLOT_FROM_OVERLAY6);
		return DROP(p, DROP_UNSUPPORTED_PROTOCOL);
	}
	ret = parse4(skb, TUNNEL_INNER, p);
	if (ret < 0)
		return ret;
	if (unlikely(is_probe(p)))
		return probe(skb, p);
	return from_sender(skb, p, TUNNEL_INNER);
}

static __always_inline int to_device(struct __sk_buff *skb)
{
	skb->mark = TUNNEL_MARK;
	return TC_ACT_OK;
}

/* Where a device takes the headers off: path probes end here, all else goes up to
 * it, and from_tunnel judges it. */
static __always_inline int to_tunnel(struct __sk_buff *skb, __be32 outer)
{
	struct tunnel_headers *h;
	struct packet *p;
	struct iphdr *ip;
	int ret, sound;

	pull(skb, TUNNEL_INNER + IP_HLEN + L4_MAX);
	h = data(skb) + ETH_HLEN;
	ip = data(skb) + TUNNEL_INNER;
	/* The kernel's device drops what has more bits set. */
	sound = (void *)(h + 1) <= data_end(skb) && h->vxlan.flags == VXLAN_VNI_VALID &&
	        !(h->vxlan.vni & VXLAN_RESERVED);
	if (likely(sound && bpf_ntohl(h->vxlan.vni) >> 8 != ID_HEALTH))
		return to_device(skb);
	p = new_packet(skb, PROG_FROM_OVERLAY, DIR_INGRESS);
	if (!p)
		return TC_ACT_SHOT;
	p->outer = outer;
	if (!sound || (void *)(ip + 1) > data_end(skb))
		return finish(p, DROP(p, DROP_MALFORMED));
	/* No probe comes in fragments, and they are counted where they are judged. */
	if (((struct ethhdr *)h->inner)->proto != bpf_htons(ETH_P_IP) ||
	    ip->frag_off & bpf_htons(IP_FRAGMENT))
		return to_device(skb);
	p->src_id = ID_HEALTH;
	ret = parse4(skb, TUNNEL_INNER, p);
	if (ret >= 0 && !is_probe(p))
		return to_device(skb);
	return finish(p, ret < 0 ? ret : probe(skb, p));
}

/* A packet for a local pod that no tunnel brought. Flows of the mesh use the
 * tunnel, so it may neither continue one nor pretend to come from here. */
static __always_inline int untunnelled(struct __sk_buff *skb, struct packet *p, struct endpoint *rx)
{
	struct arrival a = {.rx = rx, .hop = HOP_WORLD};
	struct tuple4 quoted = {};
	struct flow f = {};
	struct ct_entry *e;
	int ret;

	p->dst_id = rx->identity;
	p->endpoint = rx->id;
	pull(skb, ETH_HLEN + IP_HLEN + L4_MAX);
	ret = parse4(skb, ETH_HLEN, p);
	if (ret < 0)
		return ret;
	a.epoch = ip_epoch4(p->t.saddr);
	p->src_id = world_identity4(p->t.saddr);
	a.claimed = p->src_id;
	if (endpoint_by_addr4(p->t.saddr) || is_own_address(p->t.saddr) ||
	    is_no_source4(p->t.saddr))
		return DROP(p, DROP_SPOOFED_SOURCE);
	if (unlikely(p->icmp_error)) {
		pull(skb, ETH_HLEN + 2 * IP_HLEN + sizeof(struct icmphdr) + sizeof(struct udphdr));
		e = related_flow(skb, ETH_HLEN, p, &f, &quoted);
		if (!e || !(e->flags & CT_WORLD))
			return DROP(p, DROP_UNRELATED_ICMP);
		ret = related_to(p, &f, &quoted);
		if (ret < 0)
			return ret;
		if (e->flags & CT_NAT && f.dir == FLOW_FORWARD) {
			ret =
			    related_nat4(skb, p, QUOTED_DESTINATION, e->nat_addr.w[3], e->nat_port);
			if (ret < 0)
				return ret;
		}
		return to_endpoint(skb, p, rx);
	}
	flow_key(&f, &p->t);
	e = ct_find(&f);
	if (e && !(e->flags & CT_WORLD))
		return DROP(p, DROP_SPOOFED_SOURCE);
	if (e && ct_reopened(e, p)) {
		ct_delete(&f);
		e = NULL;
	}
	if (!e)
		f.dir = FLOW_FORWARD;
	if (is_unasked(p, &f))
		return DROP(p, DROP_UNASKED_REPLY);
	ret = arrival_judge(p, &f, &a);
	if (ret < 0)
		return ret;
	ret = arrival_record(p, &f, &a, &e);
	if (ret < 0)
		return ret;
	ret = answer_nat4(skb, p, &f, e);
	return ret < 0 ? ret : to_endpoint(skb, p, rx);
}

/* The pod behind an answer to a masqueraded flow, and the answer translated; NULL
 * when it is the host's own. What answers a datagram or an echo establishes the flow;
 * in TCP that is for the pod to do (see ct_confirms). */
static __always_inline struct endpoint *masqueraded(struct __sk_buff *skb, struct packet *p,
                                                    int *ret)
{
	struct snat_key key = {};
	struct tuple4 t = {};
	struct snat_entry *s, e;
	struct endpoint *rx;
	int open;

	pull(skb, ETH_HLEN + 2 * IP_HLEN + sizeof(struct icmphdr) + sizeof(struct udphdr));
	*ret = parse4(skb, ETH_HLEN, p);
	if (*ret < 0)
		return NULL;
	if (p->icmp_error) {
		if (parse_quoted(skb, ETH_HLEN, p, &t) || t.saddr != node_addr4)
			return NULL;
		snat_key(&key, t.daddr, t.dport, t.sport, t.proto);
	} else {
		snat_key(&key, p->t.saddr, p->t.sport, p->t.dport, p->t.proto);
	}
	s = snat_find(&key, &open);
	if (!s)
		return NULL;
	e = *s; /* of one that is half-open the place may be another's at any time */
	rx = endpoint_by_addr4(e.addr);
	if (!rx)
		return NULL;
	p->dst_id = rx->identity;
	p->endpoint = rx->id;
	if (p->icmp_error) {
		*ret = related_nat4(skb, p, QUOTED_SOURCE, e.addr, e.port);
		return rx;
	}
	if (open && p->t.proto != IPPROTO_TCP && snat_promote(&key, &e) < 0)
		*ret = DROP(p, DROP_NO_SNAT_PORT);
	else if (nat4_write(skb, p->t.saddr, e.addr, port_pair(p->t.sport, e.port), p->later))
		*ret = DROP(p, DROP_REWRITE_FAILED);
	return rx;
}

/* A packet to this node that is no tunnel's. */
static __always_inline int to_node(struct __sk_buff *skb)
{
	struct packet *p = new_packet(skb, PROG_FROM_OVERLAY, DIR_INGRESS);
	struct endpoint *rx;
	int ret;

	if (!snat_ports || !p)
		return TC_ACT_OK;
	rx = masqueraded(skb, p, &ret);
	if (!rx)
		return TC_ACT_OK;
	if (ret < 0)
		return finish(p, ret);
	p = new_packet(skb, PROG_FROM_OVERLAY, DIR_INGRESS);
	return p ? finish(p, untunnelled(skb, p, rx)) : TC_ACT_SHOT;
}

static __always_inline int overlay_packet(struct __sk_buff *skb)
{
	struct packet *p;
	struct endpoint *rx;
	struct ethhdr *eth;
	struct iphdr *ip;
	struct udphdr *udp;

	pull(skb, ETH_HLEN + IP_HLEN + sizeof(*udp));
	eth = data(skb);
	ip = (void *)(eth + 1);
	udp = (void *)(ip + 1);
	if ((void *)(ip + 1) > data_end(skb))
		return TC_ACT_OK;
	if (eth->proto != bpf_htons(ETH_P_IP)) {
		if (eth->proto == bpf_htons(ETH_P_IPV6))
			bpf_tail_call(skb, &slots, SLOT_FROM_OVERLAY6);
		return TC_ACT_OK;
	}
	if (ip->daddr != node_addr4) {
		rx = endpoint_by_addr4(ip->daddr);
		if (!rx)
			return TC_ACT_OK;
		p = new_packet(skb, PROG_FROM_OVERLAY, DIR_INGRESS);
		return p ? finish(p, untunnelled(skb, p, rx)) : TC_ACT_SHOT;
	}
	if ((void *)(udp + 1) > data_end(skb) || ip->protocol != IPPROTO_UDP ||
	    ip->version_ihl != IP_VERSION_IHL || ip->frag_off & bpf_htons(IP_FRAGMENT) ||
	    udp->dest != tunnel_port)
		return to_node(skb);
	if (tunnel_ifindex)
		return to_tunnel(skb, ip->saddr);
	p = new_packet(skb, PROG_FROM_OVERLAY, DIR_INGRESS);
	if (!p)
		return TC_ACT_SHOT;
	p->outer = ip->saddr;
	return finish(p, tunnelled(skb, p));
}

SEC("tc")
int from_overlay(struct __sk_buff *skb)
{
	return overlay_packet(skb);
}
