/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Service addresses and the backends behind them. */
#pragma once
#include "config.h"
#include "types.h"

struct frontend_key {
	struct addr addr;
	__be16 port;
	__u8 proto;
	__u8 pad;
};

struct frontend {
	__u32 number;  /* node-local, indexes epochs and slots */
	__u32 service; /* global service id */
	__u32 count;   /* of slots */
	/* For how many seconds after its last new flow a client stays with its
	 * backend; 0: it need not. */
	__u32 affinity;
};

struct slot_key {
	__u32 frontend;
	__u32 slot; /* from 0 */
};

struct backend {
	struct addr addr;
	__be16 port;
	__u16 pad;
	__u32 cluster;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct frontend_key);
	__type(value, struct frontend);
} services SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 524288);
	__type(key, struct slot_key);
	__type(value, __u32); /* backend number */
} service_slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, __u32);
	__type(value, struct backend);
} backends SEC(".maps");

/* By frontend number: places with backend numbers, for services with more than
 * one. All inner maps have maglev_size places. */
struct maglev_table {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16381);
	__type(key, __u32);
	__type(value, __u32);
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__array(values, struct maglev_table);
} maglev SEC(".maps");

/* Clients that stay with a backend. The agent deletes those of a backend that
 * takes no new flows any more. */
struct affinity_key {
	struct addr client;
	__u32 frontend;
};

struct affinity {
	__u32 backend;
	__u32 last; /* s of the monotonic clock */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct affinity_key);
	__type(value, struct affinity);
} affinities SEC(".maps");

/* Bumped after each change of a frontend's backends. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32); /* frontend number */
	__type(value, __u32);
} service_epochs SEC(".maps");

static __always_inline __u32 service_epoch(__u32 frontend)
{
	__u32 *epoch = bpf_map_lookup_elem(&service_epochs, &frontend);
	__u32 v = epoch ? READ_ONCE(*epoch) : 0;

	barrier();
	return v;
}

/* Whether an address may serve by the protocol. What serves by SCTP is known, to be
 * refused by name (service_choose): its checksum covers the ports, and no helper
 * mends a CRC32c. */
static __always_inline int may_serve(__u8 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_UDP || proto == IPPROTO_SCTP;
}

static __always_inline struct frontend *frontend4(const struct tuple4 *t)
{
	struct frontend_key key = {.addr = addr4(t->daddr), .port = t->dport, .proto = t->proto};

	if (!may_serve(t->proto))
		return NULL;
	return bpf_map_lookup_elem(&services, &key);
}

static __always_inline struct backend *slot_backend(const struct frontend *fe, __u32 pick,
                                                    __u32 *number)
{
	struct slot_key key = {.frontend = fe->number};
	__u32 count = READ_ONCE(fe->count), *slot;

	if (!count)
		return NULL;
	key.slot = pick % count;
	slot = bpf_map_lookup_elem(&service_slots, &key);
	if (!slot) {
		key.slot = 0;
		slot = bpf_map_lookup_elem(&service_slots, &key);
	}
	if (!slot)
		return NULL;
	*number = *slot;
	return bpf_map_lookup_elem(&backends, number);
}

/* The backend that a number falls on. What is just being replaced, in the table
 * or among the slots, is passed over. */
static __always_inline struct backend *pick_backend(const struct frontend *fe, __u32 pick,
                                                    __u32 *number)
{
	__u32 frontend = fe->number, place = pick % maglev_size, *chosen;
	void *table = READ_ONCE(fe->count) > 1 ? bpf_map_lookup_elem(&maglev, &frontend) : NULL;
	struct backend *b = NULL;

	if (table) {
		chosen = bpf_map_lookup_elem(table, &place);
		if (chosen) {
			*number = *chosen;
			b = bpf_map_lookup_elem(&backends, number);
		}
	}
	return b ? b : slot_backend(fe, pick, number);
}

static __always_inline __u32 mix(__u32 x)
{
	x ^= x >> 16;
	x *= 0x85EBCA6B;
	x ^= x >> 13;
	x *= 0xC2B2AE35;
	return x ^ x >> 16;
}

/* The backend of a client that stays with one. Nodes that do not know the client
 * yet choose the same by its address. */
static __always_inline struct backend *sticky_backend(const struct frontend *fe, __be32 client,
                                                      __u32 *number)
{
	struct affinity_key key = {.client = addr4(client), .frontend = fe->number};
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
	b = pick_backend(fe, mix(client ^ fe->service), number);
	if (b) {
		fresh.backend = *number;
		bpf_map_update_elem(&affinities, &key, &fresh, BPF_ANY);
	}
	return b;
}

/* The backend of a new flow. All nodes choose the same for the same flow. */
static __always_inline struct backend *choose_backend(const struct frontend *fe,
                                                      const struct tuple4 *t, __u32 *number)
{
	if (!READ_ONCE(fe->count))
		return NULL;
	if (fe->affinity)
		return sticky_backend(fe, t->saddr, number);
	return pick_backend(
	    fe, mix(mix(t->saddr) ^ ((__u32)t->sport << 16 | t->dport) ^ fe->service), number);
}
