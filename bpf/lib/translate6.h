/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* IPv6 flows that are sent to a service's address: their two entries. What they
 * become is packet6's to, the other entry's key its after. */
#pragma once
#include "conntrack6.h"
#include "nat6.h"
#include "service6.h"
#include "translate.h"

/* Chooses a backend for the packet and writes it into packet6's to. */
static __always_inline int service_choose6(struct packet *p, struct packet6 *x, struct choice *c)
{
	struct frontend *fe = frontend6(&x->t);
	struct backend *b;

	if (!fe)
		return DROP(p, DROP_NO_BACKEND);
	if (p->t.proto == IPPROTO_SCTP)
		return DROP(p, DROP_UNSUPPORTED_PROTOCOL);
	c->frontend = fe->number;
	c->epoch = service_epoch(fe->number);
	b = choose_backend6(fe, &x->t, &c->backend);
	if (!b || is_unroutable6(&b->addr)) /* an IPv4 backend cannot serve IPv6 */
		return DROP(p, DROP_NO_BACKEND);
	x->to.daddr = b->addr;
	x->to.dport = b->port;
	if (same_addr(&x->to.daddr, &x->t.saddr)) {
		x->to.saddr = hairpin_addr6();
		c->flags = CT_HAIRPIN;
	}
	return 0;
}

/* See backend_alive. */
static __always_inline int backend_alive6(const struct ct_entry *e)
{
	__u32 number = e->backend;
	struct backend *b = bpf_map_lookup_elem(&backends, &number);

	return b && same_addr(&b->addr, &e->nat_addr) && b->port == e->nat_port;
}

/* See service_create. */
static __always_inline int service_create6(struct packet *p, struct packet6 *x, struct flow *f,
                                           const struct choice *c, __u64 verdict,
                                           const struct route *r)
{
	__u16 flags = c->flags;
	struct flow after = {};
	struct ct_entry e, *old;
	int ret;

	if (r->hop == HOP_WORLD)
		flags |= CT_WORLD;
	flow_key6(&after, &x->after, &x->to);
	old = ct_find6(&after, &x->after);
	if (old && tuple_in_use(old, &after, p, c))
		return DROP(p, DROP_TUPLE_IN_USE);
	if (old)
		ct_delete6(&x->after);
	ct_init(&e, p, &after, flags | CT_NAT);
	e.nat_addr = x->t.daddr;
	e.nat_port = x->t.dport;
	e.frontend = c->frontend;
	e.backend = c->backend;
	ret = ct_create6(p, &x->after, &e);
	if (ret < 0)
		return ret;
	ct_init(&e, p, f, flags | CT_SERVICE);
	e.nat_addr = x->to.daddr;
	e.nat_port = x->to.dport;
	e.frontend = c->frontend;
	e.backend = c->backend;
	ct_cache(&e, FLOW_FORWARD, verdict, hop_word(r->hop, r->epoch));
	return ct_create6(p, &x->key, &e);
}

/* See service_follow. */
static __always_inline int service_follow6(struct packet *p, struct packet6 *x, struct flow *f,
                                           struct ct_entry **e)
{
	struct flow after = {};
	struct ct_entry *other;
	int ret;

	flow_key6(&after, &x->after, &x->to);
	other = ct_find6(&after, &x->after);
	if (!other) {
		struct ct_entry fresh;
		__u16 flags = (*e)->flags & (CT_HAIRPIN | CT_WORLD);

		ct_init(&fresh, p, &after, flags | CT_NAT);
		fresh.nat_addr = x->t.daddr;
		fresh.nat_port = x->t.dport;
		fresh.frontend = (*e)->frontend;
		fresh.backend = (*e)->backend;
		return ct_create6(p, &x->after, &fresh);
	}
	other->last_seen = bpf_jiffies64();
	ct_end(other, p, FLOW_FORWARD);
	if (after.half_open) {
		ret = ct_advance6(p, &after, &x->after, &other);
		if (ret < 0)
			return ret;
	}
	if (f->half_open && !after.half_open)
		return ct_promote6(p, f, &x->key, e);
	return 0;
}
