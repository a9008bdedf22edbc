/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* from_pod6: from_pod for IPv6. The order of things is that of from_pod.c, which
 * says why. */
#include "lib/event.h"
#include "lib/leave6.h"
#include "lib/ndp.h"
#include "lib/reject6.h"
#include "lib/related6.h"
#include "lib/scratch.h"
#include "lib/translate6.h"

static __always_inline int pod_cached6(struct ct_entry *e, const struct flow *f,
                                       const struct endpoint *tx, const struct addr *daddr,
                                       __u32 salt, struct route *r)
{
	__u8 dir = f->dir & 1;
	__u64 hop = READ_ONCE(e->hop[dir]);
	__u32 policy_epoch = rules_word(tx->rule_set);

	r->hop = hop >> 32;
	if (r->hop == HOP_NONE)
		return 0;
	if (r->hop == HOP_LOCAL) {
		r->ep = endpoint_by_addr6(daddr);
		if (!r->ep)
			return 0;
		r->epoch = rules_word(r->ep->rule_set);
		salt ^= local_salt(tx, r->ep);
	} else {
		r->ep = NULL;
		r->epoch = ip_epoch6(daddr);
	}
	return (__u32)hop == r->epoch &&
	       READ_ONCE(e->verdict[dir]) == verdict_word(f, policy_epoch, r->epoch, salt);
}

/* Judges a packet of tx between these addresses; port is the responder's. */
static __always_inline int pod_judge6(struct packet *p, struct packet6 *x, const struct flow *f,
                                      struct endpoint *tx, const struct addr *saddr,
                                      const struct addr *daddr, __be16 port, __u32 salt,
                                      struct route *r, __u64 *verdict)
{
	__u8 dir = f->dir == FLOW_REPLY ? DIR_INGRESS : DIR_EGRESS;
	__u64 rules = rules_word(tx->rule_set);
	int ret = route6(p, daddr, r);

	p->dst_id = r->identity;
	if (ret < 0)
		return ret;
	if (r->ep) {
		__u64 receiver = rules_word(r->ep->rule_set);

		r->epoch = receiver;
		salt ^= local_salt(tx, r->ep);
		if (r->ep->id != tx->id) { /* a pod may talk to itself */
			ret = policy_verdict6(p, x, tx, rules, dir, r->identity, daddr, port);
			if (!ret)
				ret = policy_verdict6(p, x, r->ep, receiver, dir ^ 1, tx->identity,
				                      saddr, port);
		}
	} else {
		ret = policy_verdict6(p, x, tx, rules, dir, r->identity, daddr, port);
	}
	*verdict = verdict_word(f, rules, r->epoch, salt);
	return ret;
}

/* Sends a flow's packet, to the outside masqueraded where that is so. */
static __always_inline int pod_leave6(struct __sk_buff *skb, struct packet *p, struct packet6 *x,
                                      const struct endpoint *tx, const struct flow *f,
                                      const struct route *r, struct ct_entry *e, __u16 change)
{
	int ret;

	leave_by(x, r, tx->identity, f->hash, change);
	if (masquerades6() && r->hop == HOP_WORLD && f->dir == FLOW_FORWARD) {
		ret = snat_flow6(skb, p, f, e);
		if (ret < 0)
			return ret;
		x->out.snat = e->snat_port;
	}
	return leave6(skb);
}

/* A packet without translation, or a backend's reply, which is translated
 * back. */
static __always_inline int pod_plain6(struct __sk_buff *skb, struct packet *p, struct packet6 *x,
                                      struct endpoint *tx, struct flow *f, struct ct_entry *e)
{
	struct ct_entry fresh;
	struct route r = {};
	__u64 verdict = 0;
	int ret, change = CHANGE_NOTHING, cached = 0;

	x->to = x->t;
	if (e && f->dir == FLOW_REPLY && e->flags & CT_NAT) {
		change = CHANGE_PACKET;
		x->to.saddr = e->nat_addr;
		x->to.sport = e->nat_port;
		if (e->flags & CT_HAIRPIN)
			x->to.daddr = tx->addr6;
	}
	if (e)
		cached = pod_cached6(e, f, tx, &x->to.daddr, 0, &r);
	if (!cached) {
		ret = pod_judge6(p, x, f, tx, &x->t.saddr, &x->to.daddr,
		                 f->dir == FLOW_REPLY ? x->t.sport : x->t.dport, 0, &r, &verdict);
		if (ret < 0)
			return ret;
	}
	if (!e) {
		e = &fresh;
		ct_init(e, p, f, r.hop == HOP_WORLD ? CT_WORLD : 0);
		if (r.hop == HOP_WORLD) {
			ret = snat_flow6(skb, p, f, e);
			if (ret < 0)
				return ret;
		}
		ct_cache(e, FLOW_FORWARD, verdict, hop_word(r.hop, r.epoch));
		ret = ct_create6(p, &x->key, e);
		if (ret < 0)
			return ret;
	} else {
		if (unlikely(f->half_open)) {
			ret = ct_advance6(p, f, &x->key, &e);
			if (ret < 0)
				return ret;
		}
		if (!cached) {
			mark_world(e, &r);
			ct_cache(e, f->dir, verdict, hop_word(r.hop, r.epoch));
		}
		ct_touch(e, p, f->dir);
	}
	return pod_leave6(skb, p, x, tx, f, &r, e, change);
}

static __always_inline int pod_service6(struct __sk_buff *skb, struct packet *p, struct packet6 *x,
                                        struct endpoint *tx, struct flow *f, struct ct_entry *e)
{
	struct choice c = {};
	struct route r = {};
	__u64 verdict = 0;
	int ret;

	x->to = x->t;
	if (e) {
		c.epoch = service_epoch(e->frontend);
		x->to.daddr = e->nat_addr;
		x->to.dport = e->nat_port;
		if (e->flags & CT_HAIRPIN)
			x->to.saddr = hairpin_addr6();
		if (!pod_cached6(e, f, tx, &x->to.daddr, c.epoch, &r)) {
			if (!backend_alive6(e)) {
				ct_delete6(&x->key);
				x->to = x->t;
				goto fresh;
			}
			ret = pod_judge6(p, x, f, tx, &x->to.saddr, &x->to.daddr, x->to.dport,
			                 c.epoch, &r, &verdict);
			if (ret < 0)
				return ret;
			mark_world(e, &r);
			ct_cache(e, f->dir, verdict, hop_word(r.hop, r.epoch));
		}
		if (f->half_open || p->tcp_flags & (TCP_FIN | TCP_RST) ||
		    (__u32)bpf_jiffies64() - e->created > FOLLOW_JIFFIES) {
			e->created = bpf_jiffies64();
			ret = service_follow6(p, x, f, &e);
			if (ret < 0)
				return ret;
		}
		ct_touch(e, p, f->dir);
		goto send;
	}
fresh:
	f->dir = FLOW_FORWARD;
	ret = service_choose6(p, x, &c);
	if (ret < 0)
		return ret;
	ret =
	    pod_judge6(p, x, f, tx, &x->to.saddr, &x->to.daddr, x->to.dport, c.epoch, &r, &verdict);
	if (ret < 0)
		return ret;
	ret = service_create6(p, x, f, &c, verdict, &r);
	if (ret < 0)
		return ret;
	e = ct_find6(f, &x->key);
	if (!e)
		return DROP(p, DROP_CONNTRACK_FULL);
send:
	return pod_leave6(skb, p, x, tx, f, &r, e, CHANGE_PACKET);
}

/* See pod_related. */
static __always_inline int pod_related6(struct __sk_buff *skb, struct packet *p, struct packet6 *x,
                                        struct endpoint *tx)
{
	struct flow f = {};
	struct route r = {};
	struct ct_entry *e = related_flow6(skb, ETH_HLEN, x, &f);
	int ret, change = CHANGE_QUOTED_DESTINATION;

	if (!e || !same_addr(&x->quoted.daddr, &x->t.saddr))
		return DROP(p, DROP_UNRELATED_ICMP);
	x->to.daddr = x->t.daddr;
	if (e->flags & CT_SERVICE && f.dir == FLOW_REPLY) {
		change = CHANGE_QUOTED_SOURCE;
		x->to.daddr = e->nat_addr;
	} else if (!(e->flags & CT_NAT && f.dir == FLOW_FORWARD)) {
		change = CHANGE_NOTHING;
	}
	ret = route6(p, &x->to.daddr, &r);
	if (ret < 0)
		return ret;
	p->dst_id = r.identity;
	ret = related_from6(p, x, &f, e);
	if (ret < 0)
		return ret;
	x->nat = e->nat_addr;
	x->out.port = e->nat_port;
	leave_by(x, &r, tx->identity, f.hash, change);
	if (r.hop == HOP_WORLD)
		x->out.snat = e->snat_port;
	return leave6(skb);
}

/* See became_service. */
static __always_inline int became_service6(const struct flow *f, const struct ct_entry *e,
                                           const struct packet6 *x)
{
	return f->half_open && f->dir == FLOW_FORWARD &&
	       !(e->flags & (CT_SERVICE | CT_NAT | CT_REPLIED)) && frontend6(&x->t);
}

static __always_inline int pod_flow6(struct __sk_buff *skb, struct packet *p, struct packet6 *x,
                                     struct endpoint *tx)
{
	struct flow f = {};
	struct ct_entry *e;

	flow_key6(&f, &x->key, &x->t);
	e = ct_find6(&f, &x->key);
	if (e && (ct_reopened(e, p) || became_service6(&f, e, x))) {
		ct_delete6(&x->key);
		e = NULL;
	}
	if (!e)
		f.dir = FLOW_FORWARD;
	if (is_unasked(p, &f))
		return DROP(p, DROP_UNASKED_REPLY);
	if (e ? e->flags & CT_SERVICE : frontend6(&x->t) != NULL)
		return pod_service6(skb, p, x, tx, &f, e);
	return pod_plain6(skb, p, x, tx, &f, e);
}

/* A pod sends only from its own addresses. */
static __always_inline int own_source6(const struct endpoint *tx, const struct addr *saddr)
{
	struct endpoint *ep;

	if (likely(same_addr(&tx->addr6, saddr)))
		return !is_unspecified6(saddr);
	ep = endpoint_by_addr6(saddr);
	return ep && ep->id == tx->id;
}

/* To its link a pod also speaks from the address that it has there, and before it
 * has one. */
static __always_inline int pod_control6(struct __sk_buff *skb, struct packet *p, struct packet6 *x,
                                        struct endpoint *tx)
{
	if (!is_link_local6(&x->t.saddr) && !is_unspecified6(&x->t.saddr) &&
	    !own_source6(tx, &x->t.saddr))
		return DROP(p, DROP_SPOOFED_SOURCE);
	return answer_ndp(skb, p, x, tx->host_mac, &tx->addr6);
}

static __always_inline int pod_packet6(struct __sk_buff *skb, struct packet *p)
{
	struct endpoint *tx = endpoint_by_device(skb->ifindex);
	struct packet6 *x = packet6_in_hand();
	struct ethhdr *eth;
	__u16 foreign;
	int ret;

	if (!tx || !x)
		return DROP(p, DROP_UNKNOWN_ENDPOINT);
	p->endpoint = tx->id;
	p->src_id = tx->identity;
	p->rule_set = tx->rule_set;
	pull(skb, ETH_HLEN + IP6_HLEN + L4_MAX);
	eth = data(skb);
	if ((void *)(eth + 1) > data_end(skb))
		return DROP(p, DROP_MALFORMED);
	foreign = other_mac(eth->src, tx->pod_mac);
	ret = parse6(skb, ETH_HLEN, p, x);
	if (ret < 0)
		return ret;
	if (foreign)
		return DROP(p, DROP_SPOOFED_SOURCE);
	if (unlikely(x->control))
		return pod_control6(skb, p, x, tx);
	if (!own_source6(tx, &x->t.saddr))
		return DROP(p, DROP_SPOOFED_SOURCE);
	if (unlikely(p->icmp_error))
		return pod_related6(skb, p, x, tx);
	return pod_flow6(skb, p, x, tx);
}

SEC("tc")
int from_pod6(struct __sk_buff *skb)
{
	struct packet *p = new_packet(skb, PROG_FROM_POD, DIR_EGRESS);

	return p ? finish_answering6(skb, p, pod_packet6(skb, p)) : TC_ACT_SHOT;
}
