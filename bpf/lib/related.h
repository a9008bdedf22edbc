/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Whether an ICMP error may pass: while policy would let the flow that it is about
 * pass. Policy is asked for each error, whatever is cached of the flow: nobody says by
 * errors what he may not say by the flow any more. */
#pragma once
#include "deliver.h"

/* Bits above the quoted packet's protocol. */
enum related {
	RELATED_EGRESS = 1 << 8, /* the pod here opened the flow */
	RELATED_FROM = 1 << 9,   /* the error comes from it, and not to it */
};

/* Writes what policy_first is to be asked: about a flow between ep and one who is
 * peer and at addr. Returns as policy_needed does. */
static __always_inline int related_question(const struct endpoint *ep, __u8 dir, __u32 peer,
                                            __be32 addr, __be16 port, __u8 proto, __u32 v6)
{
	struct in_hand *h = in_hand();
	__u64 rules = rules_word(ep->rule_set);

	if (!h)
		return -DROP_MALFORMED;
	h->ask.rules = rules;
	h->ask.who = policy_who(ep);
	h->ask.peer = peer;
	h->ask.addr = addr;
	h->ask.what = policy_what(dir, proto, port, v6);
	return policy_needed(&h->packet, ep, rules, dir, peer);
}

/* Finds out what to ask of the flow in hand: at its pod here, or, when the other end
 * is here too, at that one. */
static __always_inline int related_find(int other)
{
	struct in_hand *h = in_hand();
	struct endpoint *ep;
	struct route r = {};
	__u8 dir;
	int ret;

	if (!h)
		return -DROP_MALFORMED;
	ep = endpoint_by_addr4(h->ask.here);
	if (!ep)
		return DROP(&h->packet, DROP_UNKNOWN_ENDPOINT);
	ret = route4(&h->packet, h->ask.there, &r);
	if (ret < 0)
		return ret;
	if (h->ask.flow & RELATED_FROM)
		h->packet.dst_id = r.identity;
	if (r.ep && r.ep->id == ep->id)
		return 0; /* a pod may talk to itself */
	dir = h->ask.flow & RELATED_EGRESS ? DIR_EGRESS : DIR_INGRESS;
	if (!other)
		return related_question(ep, dir, r.identity, h->ask.there, h->ask.port, h->ask.flow,
		                        0);
	return r.ep ? related_question(r.ep, dir ^ 1, ep->identity, h->ask.here, h->ask.port,
	                               h->ask.flow, 0)
	            : 0;
}

/* Finds out what to ask the pod here, the one end, of a flow whose other is there; port
 * is the responder's. Global, and policy is not asked from here, for the stack's sake. */
__attribute__((noinline)) int related_here(__u32 here, __u32 there, __u32 port, __u32 flow)
{
	struct in_hand *h = in_hand();

	if (!h)
		return -DROP_MALFORMED;
	h->ask.here = here;
	h->ask.there = there;
	h->ask.port = port;
	h->ask.flow = flow;
	return related_find(0);
}

/* The same, of the other end. */
__attribute__((noinline)) int related_there(void)
{
	return related_find(1);
}

/* Asks what was found out. */
static __always_inline int related_ask(struct packet *p, int ret)
{
	struct ask *a = &((struct in_hand *)p)->ask;

	if (ret <= 0)
		return ret;
	return policy_answered(p, p->direction,
	                       policy_first(a->rules, a->who, a->peer, a->addr, a->what));
}

/* An error to the pod that sent the quoted packet. The other end is not here, or it
 * would be that one's. */
static __always_inline int related_to(struct packet *p, const struct flow *f,
                                      const struct tuple4 *quoted)
{
	int reply = f->dir == FLOW_REPLY;

	return related_ask(p, related_here(quoted->saddr, quoted->daddr,
	                                   reply ? quoted->sport : quoted->dport,
	                                   quoted->proto | (reply ? 0 : RELATED_EGRESS)));
}

/* An error of the pod that the quoted packet was for. */
static __always_inline int related_from(struct packet *p, const struct flow *f,
                                        const struct ct_entry *e, const struct tuple4 *quoted)
{
	int ret, reply = f->dir == FLOW_REPLY;
	__u32 flow = quoted->proto | RELATED_FROM | (reply ? RELATED_EGRESS : 0);
	__be16 port = reply ? quoted->sport : quoted->dport;
	__be32 to = quoted->saddr;

	if (e->flags & CT_HAIRPIN)
		return 0;                     /* a pod may talk to itself */
	if (reply && e->flags & CT_SERVICE) { /* the client knows the service's */
		to = e->nat_addr.w[3];
		port = e->nat_port;
	}
	ret = related_ask(p, related_here(quoted->daddr, to, port, flow));
	return ret < 0 ? ret : related_ask(p, related_there());
}
