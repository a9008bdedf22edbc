/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Service addresses and the backends behind them. */
#pragma once
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

static __always_inline struct frontend *frontend4(const struct tuple4 *t)
{
	struct frontend_key key = {.addr = addr4(t->daddr), .port = t->dport, .proto = t->proto};

	if (t->proto != IPPROTO_TCP && t->proto != IPPROTO_UDP)
		return NULL;
	return bpf_map_lookup_elem(&services, &key);
}

/* The backend that a number falls on. A slot that is being replaced is passed
 * over. */
static __always_inline struct backend *pick_backend(const struct frontend *fe, __u32 pick,
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
