/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Flows of IPv6: the entries, words and rules of conntrack.h under a longer key,
 * in maps of their own. The key of a struct flow is not used; a flow's key is
 * beside it, in struct packet6. */
#pragma once
#include "conntrack.h"
#include "packet6.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__type(key, struct tuple6);
	__type(value, struct ct_entry);
} ct6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 32768);
	__type(key, struct tuple6);
	__type(value, struct ct_entry);
} ct6_open SEC(".maps");

/* See struct ct_told. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct tuple6);
	__type(value, struct ct_entry);
} ct6_before SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct tuple6);
	__type(value, struct ct_entry);
} ct6_open_before SEC(".maps");

/* Whether a is the higher address, as memcmp has it. */
static __always_inline int addr_above(const struct addr *a, const struct addr *b)
{
	if (a->w[0] != b->w[0])
		return bpf_ntohl(a->w[0]) > bpf_ntohl(b->w[0]);
	if (a->w[1] != b->w[1])
		return bpf_ntohl(a->w[1]) > bpf_ntohl(b->w[1]);
	if (a->w[2] != b->w[2])
		return bpf_ntohl(a->w[2]) > bpf_ntohl(b->w[2]);
	return bpf_ntohl(a->w[3]) > bpf_ntohl(b->w[3]);
}

static __always_inline void flow_key6(struct flow *f, struct tuple6 *key, const struct tuple6 *t)
{
	__u64 *words = (__u64 *)key, x = 0;

	f->high = addr_above(&t->saddr, &t->daddr) ||
	          (t->sport > t->dport && same_addr(&t->saddr, &t->daddr));
	*key = *t;
	if (f->high) {
		key->saddr = t->daddr;
		key->daddr = t->saddr;
		key->sport = t->dport;
		key->dport = t->sport;
	}
#pragma unroll
	for (int i = 0; i < (int)(sizeof(*key) / sizeof(*words)); i++) {
		x = (x ^ words[i]) * 0x9E3779B97F4A7C15ULL;
		x ^= x >> 32;
	}
	f->hash = x * 0xC2B2AE3D27D4EB4FULL >> 32;
}

/* See ct_taken. */
static __noinline struct ct_entry *ct_taken6(struct flow *f, const struct tuple6 *key)
{
	struct ct_entry *e = ct_take(&ct6, &ct6_before, key);

	f->half_open = !e;
	if (!e)
		e = ct_take(&ct6_open, &ct6_open_before, key);
	if (!e) {
		e = ct_take(&ct6, &ct6_before, key);
		f->half_open = !e;
	}
	return e;
}

static __noinline int ct_tell6(const struct tuple6 *key, const struct ct_entry *e)
{
	struct ct_told told = {.e = *e};

	return bpf_map_update_elem(&ct6_open_before, key, &told, BPF_ANY);
}

/* See ct_find. */
static __always_inline struct ct_entry *ct_find6(struct flow *f, const struct tuple6 *key)
{
	struct ct_entry *e = bpf_map_lookup_elem(&ct6, key);

	f->half_open = 0;
	if (!e) {
		e = bpf_map_lookup_elem(&ct6_open, key);
		f->half_open = 1;
	}
	if (unlikely(!e)) {
		e = bpf_map_lookup_elem(&ct6, key);
		f->half_open = !e;
	}
	if (ct_moving && !e)
		e = ct_taken6(f, key);
	if (e)
		f->dir = f->high == !!(e->flags & CT_ORIGIN_HIGH) ? FLOW_FORWARD : FLOW_REPLY;
	return e;
}

static __always_inline void ct_delete6(const struct tuple6 *key)
{
	bpf_map_delete_elem(&ct6, key);
	bpf_map_delete_elem(&ct6_open, key);
	if (ct_moving) {
		bpf_map_delete_elem(&ct6_before, key);
		bpf_map_delete_elem(&ct6_open_before, key);
	}
}

/* See ct_create. */
static __always_inline int ct_create6(struct packet *p, const struct tuple6 *key,
                                      struct ct_entry *e)
{
	p->opens = 1;
	e->packets[FLOW_FORWARD] = 1;
	e->bytes[FLOW_FORWARD] = p->len;
	if (ct_moving)
		ct_tell6(key, e);
	return bpf_map_update_elem(&ct6_open, key, e, BPF_ANY) ? DROP(p, DROP_CONNTRACK_FULL) : 0;
}

/* See ct_promote. */
static __always_inline int ct_promote6(struct packet *p, struct flow *f, const struct tuple6 *key,
                                       struct ct_entry **e)
{
	long err;

	(*e)->flags |= CT_REPLIED;
	if (ct_moving)
		return 0; /* where the programs before find it */
	err = bpf_map_update_elem(&ct6, key, *e, BPF_NOEXIST);
	if (err == -EBUSY)
		return 0;
	if (err && err != -EEXIST)
		return DROP(p, DROP_CONNTRACK_FULL);
	bpf_map_delete_elem(&ct6_open, key);
	*e = bpf_map_lookup_elem(&ct6, key);
	f->half_open = 0;
	return *e ? 0 : DROP(p, DROP_CONNTRACK_FULL);
}

/* See ct_advance. */
static __always_inline int ct_advance6(struct packet *p, struct flow *f, const struct tuple6 *key,
                                       struct ct_entry **e)
{
	if (f->dir == FLOW_REPLY && p->t.proto == IPPROTO_TCP) {
		(*e)->flags |= CT_REPLIED;
		return 0;
	}
	return ct_steps(f, *e) && ct_confirms(p) ? ct_promote6(p, f, key, e) : 0;
}
