/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* from_host6: from_host for IPv6. The order of things is that of from_host.c. */
#include "lib/event.h"
#include "lib/forwarded.h"
#include "lib/leave6.h"
#include "lib/ndp.h"
#include "lib/reject6.h"
#include "lib/related6.h"
#include "lib/scratch.h"
#include "lib/translate6.h"

/* See host_identity4. Linux refuses to forward what comes with an address of this
 * node by IPv4, and not by IPv6: it is the outside's, whatever its source. */
static __always_inline __u32 host_identity6(const struct addr *saddr, int forwarded)
{
	struct ip_entry *ip;

	if (is_node_addr6(saddr))
		return forwarded ? ID_WORLD : ID_HOST;
	ip = ipcache_lookup6(saddr, 0);
	if (ip && ip->flags & IP_HOST)
		return forwarded ? ID_WORLD : ID_HOST;
	return ip && !ip->node ? outside_identity(ip) : ID_WORLD;
}

static __always_inline int host_route6(struct packet *p, const struct addr *daddr, struct route *r)
{
	int ret = route6(p, daddr, r);

	p->dst_id = r->identity;
	if (ret < 0)
		return ret;
	if (r->hop == HOP_WORLD || r->hop == HOP_HOST)
		return DROP(p, DROP_NO_TUNNEL_ENDPOINT);
	if (r->hop != HOP_LOCAL && p->src_id != ID_HOST)
		return DROP(p, DROP_SPOOFED_SOURCE); /* no transit into the tunnel */
	if (r->ep)
		p->endpoint = r->ep->id;
	return 0;
}

/* Judges a packet of saddr; port is the responder's. */
static __always_inline int host_judge6(struct packet *p, struct packet6 *x, const struct flow *f,
                                       const struct addr *saddr, __be16 port, struct route *r)
{
	if (!r->ep)
		return 0;
	return policy_verdict6(p, x, r->ep, rules_word(r->ep->rule_set),
	                       f->dir == FLOW_REPLY ? DIR_EGRESS : DIR_INGRESS, p->src_id, saddr,
	                       port);
}

static __always_inline int host_record6(struct packet *p, struct packet6 *x, struct flow *f,
                                        struct ct_entry *e, __u16 flags)
{
	struct ct_entry fresh;
	int ret;

	if (!e) {
		ct_init(&fresh, p, f, flags);
		return ct_create6(p, &x->key, &fresh);
	}
	if (f->half_open) {
		ret = ct_advance6(p, f, &x->key, &e);
		if (ret < 0)
			return ret;
	}
	ct_touch(e, p, f->dir);
	return 0;
}

/* See host_service. */
static __always_inline int host_service6(struct packet *p, struct packet6 *x, struct flow *f,
                                         struct ct_entry *e, struct route *r)
{
	struct choice c = {};
	int ret;

	if (e && !backend_alive6(e)) {
		ct_delete6(&x->key);
		e = NULL;
	}
	f->dir = FLOW_FORWARD;
	x->to = x->t;
	if (e) {
		x->to.daddr = e->nat_addr;
		x->to.dport = e->nat_port;
	} else {
		ret = service_choose6(p, x, &c);
		if (ret < 0)
			return ret;
	}
	ret = host_route6(p, &x->to.daddr, r);
	if (ret < 0)
		return ret;
	ret = host_judge6(p, x, f, &x->to.saddr, x->to.dport, r);
	if (ret < 0)
		return ret;
	ret = e ? service_follow6(p, x, f, &e) : service_create6(p, x, f, &c, 0, r);
	if (ret < 0)
		return ret;
	if (e)
		ct_touch(e, p, FLOW_FORWARD);
	leave_by(x, r, ID_REMOTE_NODE, f->hash, CHANGE_PACKET);
	return 0;
}

static __always_inline int host_plain6(struct packet *p, struct packet6 *x, struct flow *f,
                                       struct ct_entry *e, struct route *r)
{
	int ret = host_route6(p, &x->t.daddr, r);
	__u16 change = CHANGE_NOTHING;

	if (ret < 0)
		return ret;
	if (e && p->src_id != ID_HOST && !(e->flags & CT_WORLD))
		return DROP(p, DROP_SPOOFED_SOURCE);
	ret = host_judge6(p, x, f, &x->t.saddr, f->dir == FLOW_REPLY ? x->t.sport : x->t.dport, r);
	if (ret < 0)
		return ret;
	ret = host_record6(p, x, f, e, p->src_id == ID_HOST ? 0 : CT_WORLD);
	if (ret < 0)
		return ret;
	if (e && f->dir == FLOW_REPLY && e->flags & CT_NAT) { /* see answer_nat4 */
		x->to = x->t;
		x->to.saddr = e->nat_addr;
		x->to.sport = e->nat_port;
		change = CHANGE_PACKET;
	}
	leave_by(x, r, ID_REMOTE_NODE, f->hash, change);
	return 0;
}

/* See host_related. */
static __always_inline int host_related6(struct __sk_buff *skb, struct packet *p, struct packet6 *x,
                                         struct flow *f, struct route *r)
{
	int ret = host_route6(p, &x->t.daddr, r);
	__u16 change = CHANGE_NOTHING;
	struct ct_entry *e;

	if (ret < 0)
		return ret;
	e = related_flow6(skb, ETH_HLEN, x, f);
	if (p->src_id != ID_HOST && !(e && e->flags & CT_WORLD))
		return DROP(p, DROP_UNRELATED_ICMP);
	if (p->src_id != ID_HOST && r->ep)
		ret = related_to6(p, x, f);
	if (ret < 0)
		return ret;
	if (e && e->flags & CT_NAT && f->dir == FLOW_FORWARD) {
		x->nat = e->nat_addr;
		x->out.port = e->nat_port;
		change = CHANGE_QUOTED_DESTINATION;
	}
	leave_by(x, r, ID_REMOTE_NODE, f->hash, change);
	return 0;
}

static __always_inline int host_flow6(struct packet *p, struct packet6 *x, struct flow *f,
                                      struct route *r)
{
	struct ct_entry *e;

	flow_key6(f, &x->key, &x->t);
	e = ct_find6(f, &x->key);
	if (e && ct_reopened(e, p)) {
		ct_delete6(&x->key);
		e = NULL;
	}
	if (!e)
		f->dir = FLOW_FORWARD;
	if (is_unasked(p, f))
		return DROP(p, DROP_UNASKED_REPLY);
	if (p->src_id == ID_HOST && (e ? e->flags & CT_SERVICE : frontend6(&x->t) != NULL))
		return host_service6(p, x, f, e, r);
	return host_plain6(p, x, f, e, r);
}

static __always_inline int host_packet6(struct __sk_buff *skb, struct packet *p)
{
	__u16 mac[3] = {net_mac[0], net_mac[1], net_mac[2]};
	struct packet6 *x = packet6_in_hand();
	struct route r = {};
	struct flow f = {};
	int ret;

	if (!x)
		return DROP(p, DROP_MALFORMED);
	pull(skb, ETH_HLEN + IP6_HLEN + L4_MAX);
	ret = parse6(skb, ETH_HLEN, p, x);
	if (ret < 0)
		return ret;
	if (unlikely(x->control))
		return answer_ndp(skb, p, x, (__u8 *)mac, NULL);
	p->src_id = host_identity6(&x->t.saddr, is_forwarded(skb));
	if (p->src_id != ID_HOST && endpoint_by_addr6(&x->t.saddr))
		return DROP(p, DROP_SPOOFED_SOURCE); /* pods do not send by the host */
	ret = unlikely(p->icmp_error) ? host_related6(skb, p, x, &f, &r) : host_flow6(p, x, &f, &r);
	return ret < 0 ? ret : leave6(skb);
}

SEC("tc")
int from_host6(struct __sk_buff *skb)
{
	struct packet *p = new_packet(skb, PROG_FROM_HOST, DIR_INGRESS);

	return p ? finish_answering6(skb, p, host_packet6(skb, p)) : TC_ACT_SHOT;
}
