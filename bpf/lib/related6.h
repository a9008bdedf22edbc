/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* related.h for IPv6: the addresses are those in packet6. */
#pragma once
#include "deliver6.h"
#include "related.h"

/* See related_find: the flow is that of packet6's quoted, the address there its to if
 * the error comes from here. */
static __always_inline int related_find6(int other)
{
	struct packet6 *x = packet6_in_hand();
	struct in_hand *h = in_hand();
	struct addr *here, *there;
	struct endpoint *ep;
	struct route r = {};
	__u8 dir;
	int ret;

	if (!h || !x)
		return -DROP_MALFORMED;
	here = h->ask.flow & RELATED_FROM ? &x->quoted.daddr : &x->quoted.saddr;
	there = h->ask.flow & RELATED_FROM ? &x->to.daddr : &x->quoted.daddr;
	ep = endpoint_by_addr6(here);
	if (!ep)
		return DROP(&h->packet, DROP_UNKNOWN_ENDPOINT);
	ret = route6(&h->packet, there, &r);
	if (ret < 0)
		return ret;
	if (r.ep && r.ep->id == ep->id)
		return 0; /* a pod may talk to itself */
	dir = h->ask.flow & RELATED_EGRESS ? DIR_EGRESS : DIR_INGRESS;
	x->peer = other ? *here : *there;
	if (!other)
		return related_question(ep, dir, r.identity, 0, h->ask.port, h->ask.flow, 1);
	return r.ep ? related_question(r.ep, dir ^ 1, ep->identity, 0, h->ask.port, h->ask.flow, 1)
	            : 0;
}

/* See related_here. */
__attribute__((noinline)) int related_here6(__u32 port, __u32 flow)
{
	struct in_hand *h = in_hand();

	if (!h)
		return -DROP_MALFORMED;
	h->ask.port = port;
	h->ask.flow = flow;
	return related_find6(0);
}

__attribute__((noinline)) int related_there6(void)
{
	return related_find6(1);
}

/* See related_to. */
static __always_inline int related_to6(struct packet *p, const struct packet6 *x,
                                       const struct flow *f)
{
	int reply = f->dir == FLOW_REPLY;

	return related_ask(p, related_here6(reply ? x->quoted.sport : x->quoted.dport,
	                                    x->quoted.proto | (reply ? 0 : RELATED_EGRESS)));
}

/* See related_from. */
static __always_inline int related_from6(struct packet *p, const struct packet6 *x,
                                         const struct flow *f, const struct ct_entry *e)
{
	int ret, reply = f->dir == FLOW_REPLY;
	__u32 flow = x->quoted.proto | RELATED_FROM | (reply ? RELATED_EGRESS : 0);
	__be16 port = reply ? x->quoted.sport : x->quoted.dport;

	if (e->flags & CT_HAIRPIN)
		return 0;
	if (reply && e->flags & CT_SERVICE)
		port = e->nat_port;
	ret = related_ask(p, related_here6(port, flow));
	return ret < 0 ? ret : related_ask(p, related_there6());
}
