/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Flows that are sent to a service's address: their two entries. */
#pragma once
#include "conntrack.h"
#include "deliver.h"
#include "service.h"

/* What a new flow to a service becomes. */
struct choice {
	__u32 frontend;
	__u32 backend;
	__u32 epoch; /* of the frontend, read before the lookups */
	__u16 flags; /* enum ct_flags */
};

/* Chooses a backend for the packet and writes it into *to. */
static __always_inline int service_choose(struct packet *p, struct tuple4 *to, struct choice *c)
{
	struct frontend *fe = frontend4(&p->t);
	struct backend *b;

	if (!fe)
		return DROP(p, DROP_NO_BACKEND);
	if (p->t.proto == IPPROTO_SCTP)
		return DROP(p, DROP_UNSUPPORTED_PROTOCOL);
	c->frontend = fe->number;
	c->epoch = service_epoch(fe->number);
	b = choose_backend(fe, &p->t, &c->backend);
	if (!b)
		return DROP(p, DROP_NO_BACKEND);
	to->daddr = b->addr.w[3];
	to->dport = b->port;
	if (to->daddr == p->t.saddr) {
		to->saddr = HAIRPIN_ADDR4;
		c->flags = CT_HAIRPIN;
	}
	return 0;
}

/* Whether a flow's backend is still one of its service's node. */
static __always_inline int backend_alive(const struct ct_entry *e)
{
	__u32 number = e->backend;
	struct backend *b = bpf_map_lookup_elem(&backends, &number);

	return b && is_addr4(&b->addr, e->nat_addr.w[3]) && b->port == e->nat_port;
}

/* Whether the tuple that a flow to a service becomes is a live connection's, which
 * the client has with the backend directly or through another service. Its own old
 * entry is no other. Datagrams have no end, so that nobody can wait for it. */
static __always_inline int tuple_in_use(const struct ct_entry *e, const struct flow *f,
                                        const struct packet *p, const struct choice *c)
{
	if (p->t.proto != IPPROTO_TCP || f->half_open || e->tcp & CT_TCP_RST ||
	    (e->tcp & CT_TCP_CLOSED) == CT_TCP_CLOSED)
		return 0;
	return !(e->flags & CT_NAT && e->frontend == c->frontend);
}

/* Makes both entries of a new flow to a service: from before and after
 * translation. */
static __always_inline int service_create(struct packet *p, struct flow *f, const struct tuple4 *to,
                                          const struct choice *c, __u64 verdict,
                                          const struct route *r)
{
	__u16 flags = c->flags;
	struct ct_entry e, *old;
	struct flow after = {};
	int ret;

	if (r->hop == HOP_WORLD)
		flags |= CT_WORLD;
	flow_key(&after, to);
	old = ct_find(&after);
	if (old && tuple_in_use(old, &after, p, c))
		return DROP(p, DROP_TUPLE_IN_USE);
	if (old)
		ct_delete(&after);
	ct_init(&e, p, &after, flags | CT_NAT);
	e.nat_addr = addr4(p->t.daddr);
	e.nat_port = p->t.dport;
	e.frontend = c->frontend;
	e.backend = c->backend;
	ret = ct_create(p, &after, &e);
	if (ret < 0)
		return ret;
	ct_init(&e, p, f, flags | CT_SERVICE);
	e.nat_addr = addr4(to->daddr);
	e.nat_port = to->dport;
	e.frontend = c->frontend;
	e.backend = c->backend;
	ct_cache(&e, FLOW_FORWARD, verdict, hop_word(r->hop, r->epoch));
	return ct_create(p, f, &e);
}

/* The entry from after translation sees only replies: keep it as young as the
 * flow, make it again if it went, tell it of the flow's end, and follow it when it is
 * established. */
static __always_inline int service_follow(struct packet *p, struct flow *f, struct ct_entry **e,
                                          const struct tuple4 *to)
{
	struct flow after = {};
	struct ct_entry *other;
	int ret;

	flow_key(&after, to);
	other = ct_find(&after);
	if (!other) {
		struct ct_entry fresh;
		__u16 flags = (*e)->flags & (CT_HAIRPIN | CT_WORLD);

		ct_init(&fresh, p, &after, flags | CT_NAT);
		fresh.nat_addr = addr4(p->t.daddr);
		fresh.nat_port = p->t.dport;
		fresh.frontend = (*e)->frontend;
		fresh.backend = (*e)->backend;
		return ct_create(p, &after, &fresh);
	}
	other->last_seen = bpf_jiffies64();
	ct_end(other, p, FLOW_FORWARD);
	if (after.half_open) {
		ret = ct_advance(p, &after, &other);
		if (ret < 0)
			return ret;
	}
	if (f->half_open && !after.half_open)
		return ct_promote(p, f, e);
	return 0;
}

enum {
	FOLLOW_JIFFIES = 1024, /* one to ten seconds */
};
