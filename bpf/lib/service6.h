/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Services with IPv6 addresses: the maps of service.h. */
#pragma once
#include "packet6.h"
#include "service.h"

static __always_inline struct frontend *frontend6(const struct tuple6 *t)
{
	struct frontend_key key = {.addr = t->daddr, .port = t->dport, .proto = t->proto};

	if (!may_serve(t->proto))
		return NULL;
	return bpf_map_lookup_elem(&services, &key);
}

static __always_inline __u32 mix_addr(const struct addr *a)
{
	return mix(mix(mix(mix(a->w[0]) ^ a->w[1]) ^ a->w[2]) ^ a->w[3]);
}

/* See sticky_backend. */
static __always_inline struct backend *sticky_backend6(const struct frontend *fe,
                                                       const struct addr *client, __u32 *number)
{
	struct affinity_key key = {.client = *client, .frontend = fe->number};
	struct affinity fresh = {.last = bpf_ktime_get_ns() / NSEC_PER_SEC}, *known;
	struct backend *b;

	known = bpf_map_lookup_elem(&affinities, &key);
	if (known && fresh.last - READ_ONCE(known->last) <= fe->affinity) {
		*number = READ_ONCE(known->backend);
		b = bpf_map_lookup_elem(&backends, number);
		if (b) {
			WRITE_ONCE(known->last, fresh.last);
			return b;
		}
	}
	b = pick_backend(fe, mix(mix_addr(client) ^ fe->service), number);
	if (b) {
		fresh.backend = *number;
		bpf_map_update_elem(&affinities, &key, &fresh, BPF_ANY);
	}
	return b;
}

/* The backend of a new flow. All nodes choose the same for the same flow. */
static __always_inline struct backend *choose_backend6(const struct frontend *fe,
                                                       const struct tuple6 *t, __u32 *number)
{
	if (!READ_ONCE(fe->count))
		return NULL;
	if (fe->affinity)
		return sticky_backend6(fe, &t->saddr, number);
	return pick_backend(
	    fe, mix(mix_addr(&t->saddr) ^ ((__u32)t->sport << 16 | t->dport) ^ fe->service),
	    number);
}
