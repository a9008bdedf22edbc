/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* from_pod: ingress of the host's end of a pod's veth, what the pod sends.
 *
 * Reading order: from_pod, pod_ipv4, pod_flow, then pod_plain for packets as
 * they are and pod_service for packets to a service address. */
#include "lib/arp.h"
#include "lib/deliver.h"
#include "lib/event.h"
#include "lib/masquerade.h"
#include "lib/reject.h"
#include "lib/related.h"
#include "lib/scratch.h"
#include "lib/slots.h"
#include "lib/translate.h"

/* What is cached when both ends are here: the hop's epoch is the receiver's rule
 * set's, and both identities are part of the check. */
static __always_inline __u32 local_salt(const struct endpoint *tx, const struct endpoint *rx)
{
	return tx->identity * 0x9E3779B1 ^ rx->identity;
}

/* Whether the entry's outcome still holds for a packet of tx to daddr. */
static __always_inline int pod_cached(struct ct_entry *e, const struct flow *f,
                                      const struct endpoint *tx, __be32 daddr, __u32 salt,
                                      struct route *r)
{
	__u8 dir = f->dir & 1;
	__u64 hop = READ_ONCE(e->hop[dir]);
	__u32 policy_epoch = rules_word(tx->rule_set);

	r->hop = hop >> 32;
	if (r->hop == HOP_NONE)
		return 0;
	if (r->hop == HOP_LOCAL) {
		r->ep = endpoint_by_addr4(daddr);
		if (!r->ep)
			return 0;
		r->epoch = rules_word(r->ep->rule_set);
		salt ^= local_salt(tx, r->ep);
	} else {
		r->ep = NULL;
		r->epoch = ip_epoch4(daddr);
	}
	return (__u32)hop == r->epoch &&
	       READ_ONCE(e->verdict[dir]) == verdict_word(f, policy_epoch, r->epoch, salt);
}

/* Judges a packet of tx with the (translated) tuple t. *verdict is the word to
 * cache beside r. */
static __always_inline int pod_judge(struct packet *p, const struct flow *f, struct endpoint *tx,
                                     const struct tuple4 *t, __u32 salt, struct route *r,
                                     __u64 *verdict)
{
	__u8 dir = f->dir == FLOW_REPLY ? DIR_INGRESS : DIR_EGRESS;
	__be16 port = f->dir == FLOW_REPLY ? t->sport : t->dport;
	__u64 rules = rules_word(tx->rule_set);
	int ret = route4(p, t->daddr, r);

	p->dst_id = r->identity;
	if (ret < 0)
		return ret;
	if (forges_tunnel(p, t->daddr, t->dport, r->hop))
		return DROP(p, DROP_FORGED_TUNNEL);
	if (r->ep) {
		__u64 receiver = rules_word(r->ep->rule_set);

		r->epoch = receiver;
		salt ^= local_salt(tx, r->ep);
		if (r->ep->id != tx->id) { /* a pod may talk to itself */
			ret = policy_verdict(p, tx, rules, dir, r->identity, t->daddr, port);
			if (!ret)
				ret = policy_verdict(p, r->ep, receiver, dir ^ 1, tx->identity,
				                     t->saddr, port);
		}
	} else {
		ret = policy_verdict(p, tx, rules, dir, r->identity, t->daddr, port);
	}
	*verdict = verdict_word(f, rules, r->epoch, salt);
	return ret;
}

static __always_inline void mark_world(struct ct_entry *e, const struct route *r)
{
	if (r->hop == HOP_WORLD)
		e->flags |= CT_WORLD;
	else
		e->flags &= ~CT_WORLD;
}

/* How a flow's packet leaves to the outside: by enum route_out. */
static __always_inline int pod_way(struct __sk_buff *skb, struct packet *p, const struct flow *f,
                                   const struct tuple4 *t, struct ct_entry *e)
{
	int ret = snat_flow(skb, p, f, t, e);

	if (ret < 0 || !e->snat_port)
		return ret < 0 ? ret : OUT_ELSEWHERE;
	return snat_way(skb, p);
}

/* Sends a flow's packet to the outside: masqueraded, or as the node's stack
 * routes it. */
static __always_inline int pod_world(struct __sk_buff *skb, struct packet *p,
                                     const struct ct_entry *e, int way)
{
	int ret;

	if (way == OUT_ELSEWHERE)
		return TC_ACT_OK;
	ret = snat_send(skb, e->snat_port, p->later);
	if (ret >= 0)
		return ret;
	p->line = __LINE__;
	return ret < -DROP_REASONS ? -DROP_REWRITE_FAILED : ret;
}

/* A packet without translation, or a backend's reply, which is translated
 * back. */
static __always_inline int pod_plain(struct __sk_buff *skb, struct packet *p, struct endpoint *tx,
                                     struct flow *f, struct ct_entry *e)
{
	struct tuple4 to = p->t;
	struct ct_entry fresh;
	struct route r = {};
	__u64 verdict = 0;
	int ret, nat = 0, cached = 0;

	if (e && f->dir == FLOW_REPLY && e->flags & CT_NAT) {
		nat = 1;
		to.saddr = e->nat_addr.w[3];
		to.sport = e->nat_port;
		if (e->flags & CT_HAIRPIN)
			to.daddr = tx->addr.w[3];
	}
	if (e)
		cached = pod_cached(e, f, tx, to.daddr, 0, &r);
	if (!cached) {
		struct tuple4 judged = p->t;

		judged.daddr = to.daddr;
		ret = pod_judge(p, f, tx, &judged, 0, &r, &verdict);
		if (ret < 0)
			return ret;
	}
	if (!e) {
		e = &fresh;
		ct_init(e, p, f, r.hop == HOP_WORLD ? CT_WORLD : 0);
		if (r.hop == HOP_WORLD) {
			ret = snat_flow(skb, p, f, &to, e);
			if (ret < 0)
				return ret;
		}
		ct_cache(e, FLOW_FORWARD, verdict, hop_word(r.hop, r.epoch));
		ret = ct_create(p, f, e);
		if (ret < 0)
			return ret;
	} else {
		if (unlikely(f->half_open)) {
			ret = ct_advance(p, f, &e);
			if (ret < 0)
				return ret;
		}
		if (!cached) {
			mark_world(e, &r);
			ct_cache(e, f->dir, verdict, hop_word(r.hop, r.epoch));
		}
		ct_touch(e, p, f->dir);
	}
	if (r.hop == HOP_WORLD && f->dir == FLOW_FORWARD) {
		ret = pod_way(skb, p, f, &to, e);
		return ret < 0 ? ret : pod_world(skb, p, e, ret);
	}
	ret = can_reach(skb, p, r.hop);
	if (ret < 0)
		return ret;
	if (nat) {
		ret = nat4(skb, p, &to);
		if (ret < 0)
			return ret;
	}
	return deliver(skb, p, &r, tx->identity, f->hash);
}

static __always_inline int pod_service(struct __sk_buff *skb, struct packet *p, struct endpoint *tx,
                                       struct flow *f, struct ct_entry *e)
{
	struct tuple4 to = p->t;
	struct choice c = {};
	struct route r = {};
	__u64 verdict = 0;
	int ret, way;

	if (e) {
		c.epoch = service_epoch(e->frontend);
		to.daddr = e->nat_addr.w[3];
		to.dport = e->nat_port;
		if (e->flags & CT_HAIRPIN)
			to.saddr = HAIRPIN_ADDR4;
		if (!pod_cached(e, f, tx, to.daddr, c.epoch, &r)) {
			if (!backend_alive(e)) {
				ct_delete(f);
				to = p->t;
				goto fresh;
			}
			ret = pod_judge(p, f, tx, &to, c.epoch, &r, &verdict);
			if (ret < 0)
				return ret;
			mark_world(e, &r);
			ct_cache(e, f->dir, verdict, hop_word(r.hop, r.epoch));
		}
		if (f->half_open || p->tcp_flags & (TCP_FIN | TCP_RST) ||
		    (__u32)bpf_jiffies64() - e->created > FOLLOW_JIFFIES) {
			e->created = bpf_jiffies64();
			ret = service_follow(p, f, &e, &to);
			if (ret < 0)
				return ret;
		}
		ct_touch(e, p, f->dir);
		goto send;
	}
fresh:
	f->dir = FLOW_FORWARD;
	ret = service_choose(p, &to, &c);
	if (ret < 0)
		return ret;
	ret = pod_judge(p, f, tx, &to, c.epoch, &r, &verdict);
	if (ret < 0)
		return ret;
	ret = service_create(p, f, &to, &c, verdict, &r);
	if (ret < 0)
		return ret;
	e = ct_find(f);
	if (!e)
		return DROP(p, DROP_CONNTRACK_FULL);
send:
	way = r.hop == HOP_WORLD ? pod_way(skb, p, f, &to, e) : can_reach(skb, p, r.hop);
	if (way < 0)
		return way;
	ret = nat4(skb, p, &to);
	if (ret < 0)
		return ret;
	return r.hop == HOP_WORLD ? pod_world(skb, p, e, way)
	                          : deliver(skb, p, &r, tx->identity, f->hash);
}

/* Whether policy lets the flow pass that an ICMP error of a pod is about. */
static __always_inline int pod_may_relate(struct __sk_buff *skb, struct packet *p)
{
	struct tuple4 quoted = {};
	struct flow f = {};
	struct ct_entry *e;

	pull(skb, ETH_HLEN + 2 * IP_HLEN + sizeof(struct icmphdr) + sizeof(struct udphdr));
	e = related_flow(skb, ETH_HLEN, p, &f, &quoted);
	if (!e || quoted.daddr != p->t.saddr)
		return DROP(p, DROP_UNRELATED_ICMP);
	return related_from(p, &f, e, &quoted);
}

/* An ICMP error passes while its flow may. A pod speaks for itself only: of others'
 * flows it would say what policy does not let it say to anybody. */
static __always_inline int pod_related(struct __sk_buff *skb, struct packet *p, struct endpoint *tx)
{
	struct tuple4 quoted = {};
	struct flow f = {};
	struct route r = {};
	struct ct_entry *e;
	__be32 to;
	int ret, way = OUT_ELSEWHERE, end = QUOTED_DESTINATION;

	pull(skb, ETH_HLEN + 2 * IP_HLEN + sizeof(struct icmphdr) + sizeof(struct udphdr));
	e = related_flow(skb, ETH_HLEN, p, &f, &quoted);
	if (!e || quoted.daddr != p->t.saddr)
		return DROP(p, DROP_UNRELATED_ICMP);
	to = p->t.daddr;
	if (e->flags & CT_SERVICE && f.dir == FLOW_REPLY) {
		end = QUOTED_SOURCE;
		to = e->nat_addr.w[3];
	} else if (!(e->flags & CT_NAT && f.dir == FLOW_FORWARD)) {
		end = -1;
	}
	ret = route4(p, to, &r);
	if (ret < 0)
		return ret;
	p->dst_id = r.identity;
	ret = can_reach(skb, p, r.hop);
	if (ret < 0)
		return ret;
	if (r.hop == HOP_WORLD && e->snat_port)
		way = snat_way(skb, p);
	if (way < 0)
		return way;
	if (end >= 0) {
		ret = related_nat4(skb, p, end, e->nat_addr.w[3], e->nat_port);
		if (ret < 0)
			return ret;
	}
	if (way != OUT_ELSEWHERE) {
		ret = snat_error(skb, e->snat_port);
		if (ret >= 0)
			return ret;
		p->line = __LINE__;
		return ret < -DROP_REASONS ? -DROP_REWRITE_FAILED : ret;
	}
	return deliver(skb, p, &r, tx->identity, f.hash);
}

/* Whether a half-open flow was opened before its destination became a service. */
static __always_inline int became_service(const struct flow *f, const struct ct_entry *e,
                                          const struct packet *p)
{
	return f->half_open && f->dir == FLOW_FORWARD &&
	       !(e->flags & (CT_SERVICE | CT_NAT | CT_REPLIED)) && frontend4(&p->t);
}

static __always_inline int pod_flow(struct __sk_buff *skb, struct packet *p, struct endpoint *tx)
{
	struct flow f = {};
	struct ct_entry *e;

	flow_key(&f, &p->t);
	e = ct_find(&f);
	if (e && (ct_reopened(e, p) || became_service(&f, e, p))) {
		ct_delete(&f);
		e = NULL;
	}
	if (!e)
		f.dir = FLOW_FORWARD;
	if (is_unasked(p, &f))
		return DROP(p, DROP_UNASKED_REPLY);
	if (e ? e->flags & CT_SERVICE : frontend4(&p->t) != NULL)
		return pod_service(skb, p, tx, &f, e);
	return pod_plain(skb, p, tx, &f, e);
}

/* A pod sends only from its own addresses. */
static __always_inline int own_source(const struct endpoint *tx, __be32 saddr)
{
	struct endpoint *ep;

	if (likely(is_addr4(&tx->addr, saddr)))
		return 1;
	ep = endpoint_by_addr4(saddr);
	return ep && ep->id == tx->id;
}

static __always_inline int pod_ipv4(struct __sk_buff *skb, struct packet *p, struct endpoint *tx,
                                    __u16 foreign)
{
	int ret = parse4(skb, ETH_HLEN, p);

	if (ret < 0)
		return ret;
	if (foreign || !own_source(tx, p->t.saddr))
		return DROP(p, DROP_SPOOFED_SOURCE);
	if (unlikely(p->icmp_error)) {
		ret = pod_may_relate(skb, p);
		return ret < 0 ? ret : pod_related(skb, p, tx);
	}
	return pod_flow(skb, p, tx);
}

/* The bits in which two hardware addresses differ: a number, since with a branch the
 * verifier would walk what follows twice. */
static __always_inline __u16 other_mac(const __u8 *a, const __u8 *b)
{
	const __u16 *x = (const __u16 *)a, *y = (const __u16 *)b;

	return (x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]);
}

static __always_inline int pod_packet(struct __sk_buff *skb, struct packet *p)
{
	struct endpoint *tx = endpoint_by_device(skb->ifindex);
	struct ethhdr *eth;
	__u16 foreign;

	if (!tx)
		return DROP(p, DROP_UNKNOWN_ENDPOINT);
	p->endpoint = tx->id;
	p->src_id = tx->identity;
	p->rule_set = tx->rule_set;
	pull(skb, ETH_HLEN + IP_HLEN + L4_MAX);
	eth = data(skb);
	if ((void *)(eth + 1) > data_end(skb))
		return DROP(p, DROP_MALFORMED);
	/* A frame with a foreign hardware address is read for what its drop tells. */
	foreign = other_mac(eth->src, tx->pod_mac);
	if (likely(eth->proto == bpf_htons(ETH_P_IP)))
		return pod_ipv4(skb, p, tx, foreign);
	if (eth->proto == bpf_htons(ETH_P_IPV6))
		bpf_tail_call(skb, &slots, SLOT_FROM_POD6);
	if (foreign)
		return DROP(p, DROP_SPOOFED_SOURCE);
	if (eth->proto == bpf_htons(ETH_P_ARP))
		return answer_arp(skb, p, tx->host_mac, tx->addr.w[3]);
	return DROP(p, DROP_UNSUPPORTED_PROTOCOL);
}

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	struct packet *p = new_packet(skb, PROG_FROM_POD, DIR_EGRESS);

	return p ? finish_answering(skb, p, pod_packet(skb, p)) : TC_ACT_SHOT;
}
