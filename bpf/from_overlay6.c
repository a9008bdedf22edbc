/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* from_overlay6: from_overlay for IPv6, in the tunnel or beside it. The tunnel
 * itself is IPv4; from_overlay has looked at its headers. */
#include "lib/deliver6.h"
#include "lib/event.h"
#include "lib/icmp6.h"
#include "lib/masquerade6.h"
#include "lib/related6.h"
#include "lib/scratch.h"

static __always_inline int arrival_judge6(struct packet *p, struct packet6 *x, const struct flow *f,
                                          struct arrival *a)
{
	__u8 reply = f->dir == FLOW_REPLY;
	__u64 rules = 0;

	if (!a->rx) {
		a->verdict = arrival_word(f, a, 0);
		return 0; /* the host has no policy */
	}
	rules = rules_word(a->rx->rule_set);
	a->verdict = arrival_word(f, a, rules);
	return policy_verdict6(p, x, a->rx, rules, reply ? DIR_EGRESS : DIR_INGRESS, p->src_id,
	                       &x->t.saddr, reply ? x->t.sport : x->t.dport);
}

/* See arrival_record. */
static __always_inline int arrival_record6(struct packet *p, struct packet6 *x, struct flow *f,
                                           struct arrival *a, struct ct_entry **e)
{
	__u16 flags = a->hop == HOP_WORLD ? CT_WORLD : 0;
	struct ct_entry fresh;
	int ret;

	if (!*e) {
		ct_init(&fresh, p, f, flags);
		ct_cache(&fresh, FLOW_FORWARD, a->verdict, hop_word(a->hop, a->epoch));
		return ct_create6(p, &x->key, &fresh);
	}
	if (f->half_open) {
		ret = ct_advance6(p, f, &x->key, e);
		if (ret < 0)
			return ret;
	}
	(*e)->flags = ((*e)->flags & ~CT_WORLD) | flags;
	ct_cache(*e, f->dir, a->verdict, hop_word(a->hop, a->epoch));
	ct_touch(*e, p, f->dir);
	return 0;
}

/* A backend's reply gets the service's address back. */
static __always_inline int arrival_nat6(struct __sk_buff *skb, struct packet *p, struct packet6 *x,
                                        const struct flow *f, const struct ct_entry *e)
{
	if (!e || f->dir != FLOW_REPLY || !(e->flags & CT_NAT))
		return 0;
	x->to = x->t;
	x->to.saddr = e->nat_addr;
	x->to.sport = e->nat_port;
	return nat6(skb, p);
}

/* See name_destination. */
static __always_inline void name_destination6(struct packet *p, const struct packet6 *x,
                                              const struct arrival *a)
{
	if (!a->rx && !is_own_address6(&x->t.daddr))
		p->dst_id = ID_UNKNOWN;
}

static __always_inline int tunnel_slow6(struct packet *p, struct packet6 *x, struct flow *f,
                                        struct ct_entry **e, struct arrival *a)
{
	struct node *node;
	int ret;

	name_destination6(p, x, a);
	a->hop = node_id_by_addr4(p->outer);
	node = node_by_id(a->hop);
	if (!node)
		return DROP(p, DROP_UNKNOWN_SENDER);
	ret = check_sender6(p, x, a->hop, node);
	if (ret < 0)
		return ret;
	if (!a->rx && (!is_mesh_address6(&x->t.daddr) || opens_from_external(f, *e, node)))
		return DROP(p, DROP_UNKNOWN_DESTINATION);
	if (*e && (ct_reopened(*e, p) || ((*e)->flags & CT_WORLD && f->dir == FLOW_FORWARD))) {
		ct_delete6(&x->key);
		*e = NULL;
	}
	if (!*e)
		f->dir = FLOW_FORWARD;
	if (is_unasked(p, f))
		return DROP(p, DROP_UNASKED_REPLY);
	ret = arrival_judge6(p, x, f, a);
	return ret < 0 ? ret : arrival_record6(p, x, f, a, e);
}

/* See tunnel_related. */
static __always_inline int tunnel_related6(struct __sk_buff *skb, struct packet *p,
                                           struct packet6 *x, __u32 off, struct arrival *a)
{
	struct flow f = {};
	__u32 sender = node_id_by_addr4(p->outer);
	struct node *node = node_by_id(sender);
	struct ct_entry *e;
	int ret;

	name_destination6(p, x, a);
	if (!node)
		return DROP(p, DROP_UNKNOWN_SENDER);
	ret = check_sender6(p, x, sender, node);
	if (ret < 0)
		return ret;
	e = related_flow6(skb, off, x, &f);
	if (!e || e->flags & CT_WORLD || !knows_packet6(p, x, sender, &x->quoted.daddr))
		return DROP(p, DROP_UNRELATED_ICMP);
	if (!a->rx && !is_mesh_address6(&x->t.daddr))
		return DROP(p, DROP_UNKNOWN_DESTINATION);
	ret = a->rx ? related_to6(p, x, &f) : 0;
	if (ret < 0)
		return ret;
	ret = off == TUNNEL_INNER ? tunnel_strip6(skb, p) : 0;
	if (!ret && e->flags & CT_NAT && f.dir == FLOW_FORWARD)
		ret = related_nat6(skb, p, x, QUOTED_DESTINATION, &e->nat_addr, e->nat_port);
	return ret < 0 ? ret : arrival_send(skb, p, a);
}

/* See from_sender. */
static __always_inline int from_sender6(struct __sk_buff *skb, struct packet *p, struct packet6 *x,
                                        __u32 off)
{
	struct arrival a = {};
	struct flow f = {};
	struct ct_entry *e;
	int ret;

	ret = parse6(skb, off, p, x);
	if (ret < 0)
		return ret;
	if (x->control)
		return DROP(p, DROP_UNSUPPORTED_PROTOCOL); /* it is of another link */
	a.claimed = p->src_id;
	a.rx = endpoint_by_addr6(&x->t.daddr);
	p->dst_id = a.rx ? a.rx->identity : ID_HOST;
	p->endpoint = a.rx ? a.rx->id : 0;
	if (unlikely(p->icmp_error))
		return tunnel_related6(skb, p, x, off, &a);
	a.epoch = ip_epoch6(&x->t.saddr);
	flow_key6(&f, &x->key, &x->t);
	e = ct_find6(&f, &x->key);
	if (e && !ct_steps(&f, e) && !ct_reopened(e, p) && !is_unasked(p, &f) &&
	    tunnel_cached(p, &f, e, &a)) {
		ct_touch(e, p, f.dir);
	} else {
		ret = tunnel_slow6(p, x, &f, &e, &a);
		if (ret < 0)
			return ret;
	}
	if (off == TUNNEL_INNER) {
		ret = tunnel_strip6(skb, p);
		if (ret < 0)
			return ret;
	}
	ret = arrival_nat6(skb, p, x, &f, e);
	return ret < 0 ? ret : arrival_send(skb, p, &a);
}

static __always_inline int tunnelled6(struct __sk_buff *skb, struct packet *p, struct packet6 *x)
{
	struct tunnel_headers *h;

	pull(skb, TUNNEL_INNER + IP6_HLEN + L4_MAX);
	h = data(skb) + ETH_HLEN;
	if ((void *)(h + 1) > data_end(skb))
		return DROP(p, DROP_MALFORMED);
	p->outer = h->ip.saddr;
	p->src_id = bpf_ntohl(h->vxlan.vni) >> 8;
	return from_sender6(skb, p, x, TUNNEL_INNER);
}

/* See untunnelled. */
static __always_inline int untunnelled6(struct __sk_buff *skb, struct packet *p, struct packet6 *x,
                                        struct endpoint *rx)
{
	struct arrival a = {.rx = rx, .hop = HOP_WORLD};
	struct flow f = {};
	struct ct_entry *e;
	int ret;

	p->dst_id = rx->identity;
	p->endpoint = rx->id;
	pull(skb, ETH_HLEN + IP6_HLEN + L4_MAX);
	ret = parse6(skb, ETH_HLEN, p, x);
	if (ret < 0)
		return ret;
	if (x->control)
		return DROP(p, DROP_UNSUPPORTED_PROTOCOL);
	a.epoch = ip_epoch6(&x->t.saddr);
	p->src_id = world_identity6(&x->t.saddr);
	a.claimed = p->src_id;
	if (is_unspecified6(&x->t.saddr) || is_link_local6(&x->t.saddr) ||
	    endpoint_by_addr6(&x->t.saddr) || is_own_address6(&x->t.saddr))
		return DROP(p, DROP_SPOOFED_SOURCE);
	if (unlikely(p->icmp_error)) {
		e = related_flow6(skb, ETH_HLEN, x, &f);
		if (!e || !(e->flags & CT_WORLD))
			return DROP(p, DROP_UNRELATED_ICMP);
		ret = related_to6(p, x, &f);
		if (ret < 0)
			return ret;
		if (e->flags & CT_NAT && f.dir == FLOW_FORWARD) {
			ret =
			    related_nat6(skb, p, x, QUOTED_DESTINATION, &e->nat_addr, e->nat_port);
			if (ret < 0)
				return ret;
		}
		return to_endpoint(skb, p, rx);
	}
	flow_key6(&f, &x->key, &x->t);
	e = ct_find6(&f, &x->key);
	if (e && !(e->flags & CT_WORLD))
		return DROP(p, DROP_SPOOFED_SOURCE);
	if (e && ct_reopened(e, p)) {
		ct_delete6(&x->key);
		e = NULL;
	}
	if (!e)
		f.dir = FLOW_FORWARD;
	if (is_unasked(p, &f))
		return DROP(p, DROP_UNASKED_REPLY);
	ret = arrival_judge6(p, x, &f, &a);
	if (ret < 0)
		return ret;
	ret = arrival_record6(p, x, &f, &a, &e);
	if (ret < 0)
		return ret;
	ret = arrival_nat6(skb, p, x, &f, e);
	return ret < 0 ? ret : to_endpoint(skb, p, rx);
}

/* See masqueraded. The packet is to outside_addr6. */
static __always_inline struct endpoint *masqueraded6(struct __sk_buff *skb, struct packet *p,
                                                     struct packet6 *x, int *ret)
{
	struct snat6_key key = {};
	const struct tuple6 *t = &x->t;
	struct snat6_entry *s, e;
	struct endpoint *rx;
	int open;

	pull(skb, ETH_HLEN + IP6_HLEN + L4_MAX);
	*ret = parse6(skb, ETH_HLEN, p, x);
	if (*ret < 0 || x->control)
		return NULL;
	key.proto = t->proto;
	if (p->icmp_error) {
		t = &x->quoted;
		if (parse_quoted6(skb, ETH_HLEN) < 0 || !same_addr(&t->saddr, &x->t.daddr))
			return NULL;
		key.remote = t->daddr;
		key.remote_port = t->dport;
		key.port = t->sport;
		key.proto = t->proto;
	} else {
		key.remote = t->saddr;
		key.remote_port = t->sport;
		key.port = t->dport;
	}
	s = snat_find6(&key, &open);
	if (!s)
		return NULL;
	e = *s;
	rx = endpoint_by_addr6(&e.addr);
	if (!rx)
		return NULL;
	p->dst_id = rx->identity;
	p->endpoint = rx->id;
	if (p->icmp_error) {
		*ret = related_nat6(skb, p, x, QUOTED_SOURCE, &e.addr, e.port);
		return rx;
	}
	x->to = x->t;
	x->to.daddr = e.addr;
	x->to.dport = e.port;
	if (open && p->t.proto != IPPROTO_TCP && snat_promote6(&key, &e) < 0)
		*ret = DROP(p, DROP_NO_SNAT_PORT);
	else
		*ret = nat6(skb, p);
	return rx;
}

static __always_inline int overlay_packet6(struct __sk_buff *skb)
{
	struct packet6 *x = packet6_in_hand();
	struct endpoint *rx;
	struct ethhdr *eth;
	struct ipv6hdr *ip;
	struct packet *p;
	struct addr own;
	int ret;

	pull(skb, ETH_HLEN + sizeof(*ip));
	eth = data(skb);
	ip = (void *)(eth + 1);
	if (!x || (void *)(ip + 1) > data_end(skb))
		return TC_ACT_OK;
	if (eth->proto != bpf_htons(ETH_P_IPV6)) {
		p = new_packet(skb, PROG_FROM_OVERLAY, DIR_INGRESS);
		return p ? finish(p, tunnelled6(skb, p, x)) : TC_ACT_SHOT;
	}
	own = outside_addr6();
	if (masquerades6() && same_addr(&ip->daddr, &own)) {
		p = new_packet(skb, PROG_FROM_OVERLAY, DIR_INGRESS);
		if (!p)
			return TC_ACT_OK;
		rx = masqueraded6(skb, p, x, &ret);
		if (rx && ret < 0)
			return finish(p, ret);
	} else {
		rx = endpoint_by_addr6(&ip->daddr);
	}
	if (!rx)
		return TC_ACT_OK;
	p = new_packet(skb, PROG_FROM_OVERLAY, DIR_INGRESS);
	return p ? finish(p, untunnelled6(skb, p, x, rx)) : TC_ACT_SHOT;
}

SEC("tc")
int from_overlay6(struct __sk_buff *skb)
{
	return overlay_packet6(skb);
}
