/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The workloads of this node. */
#pragma once
#include "types.h"

struct endpoint {
	struct addr addr; /* its first IPv4 address */
	__u32 ifindex;    /* of the host's end */
	__u32 identity;
	__u32 rule_set;
	__u16 id; /* 0: no endpoint */
	__u16 flags;
	__u8 host_mac[ETH_ALEN];
	__u8 pod_mac[ETH_ALEN];
	__u32 cluster;
	struct addr addr6; /* its first IPv6 address; all zero: none */
};

/* An address in the address space of a cluster. */
struct ip_key {
	struct addr addr;
	__u32 cluster;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32); /* ifindex */
	__type(value, struct endpoint);
} ep_devices SEC(".maps");

/* Endpoints whose ifindex is beyond the array. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u32); /* ifindex */
	__type(value, struct endpoint);
} ep_strays SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct ip_key);
	__type(value, struct endpoint);
} endpoints SEC(".maps");

static __always_inline struct endpoint *endpoint_by_device(__u32 ifindex)
{
	struct endpoint *ep = bpf_map_lookup_elem(&ep_devices, &ifindex);

	if (unlikely(!ep))
		ep = bpf_map_lookup_elem(&ep_strays, &ifindex);
	return ep && ep->id ? ep : NULL;
}

static __always_inline struct endpoint *endpoint_by_addr4(__be32 a)
{
	struct ip_key key = {.addr = addr4(a)};

	return bpf_map_lookup_elem(&endpoints, &key);
}
