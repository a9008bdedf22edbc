/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Who has an address and behind which node it is; nodes of the mesh. */
#pragma once
#include "endpoint.h"

enum ip_flags {
	IP_HOST = 1 << 0,        /* this node's own address */
	IP_REMOTE_NODE = 1 << 1, /* another node's own address */
	IP_CIDR = 1 << 2,        /* known only as a node's pod CIDR */
	IP_WITHHELD = 1 << 3,    /* the identity is hidden: a narrower prefix found no room */
	IP_LOCAL = 1 << 4,       /* with IP_HOST: one that other nodes do not know */
};

struct ip_entry {
	__u32 identity; /* 0: unknown yet */
	__u32 node;     /* 0: here or outside the mesh */
	__u8 flags;     /* enum ip_flags */
	__u8 pad[3];
};

struct ip_prefix {
	__u32 bits; /* of what follows */
	__u32 cluster;
	struct addr addr;
};

enum {
	IP_PREFIX_BITS = 8 * (sizeof(struct ip_prefix) - sizeof(__u32)),
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 524288);
	__type(key, struct ip_key);
	__type(value, struct ip_entry);
} ipcache SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct ip_prefix);
	__type(value, struct ip_entry);
} ipcache_prefix SEC(".maps");

/* Epochs: one per bucket of addresses, and a last one for all prefixes. */
enum {
	IP_EPOCH_BITS = 12,
	IP_EPOCHS = 1 << IP_EPOCH_BITS,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, IP_EPOCHS + 1);
	__type(key, __u32);
	__type(value, __u32);
} ipcache_epochs SEC(".maps");

/* The cluster of tunnel endpoints that are no nodes: an operator declared them,
 * and what comes from them is of the outside. No identity has it. */
#define CLUSTER_EXTERNAL 0xFFFFFFFF

struct node {
	struct addr addr; /* tunnel endpoint; all zero: no node */
	__u32 cluster;
	__u32 mtu; /* 0: unknown */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384);
	__type(key, __u32); /* node id, from 1 */
	__type(value, struct node);
} nodes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct addr);
	__type(value, __u32); /* node id */
} node_addrs SEC(".maps");

/* What external tunnel endpoints want to see in headers. */
struct vtep {
	__u32 vni; /* of all its packets, both ways */
	__u8 mac[6];
	__u8 pad[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __u32); /* node id */
	__type(value, struct vtep);
} vteps SEC(".maps");

/* Identities whose labels this node knows. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, __u32);
	__type(value, __u32); /* cluster */
} identities SEC(".maps");

/* The bucket of an address. datapath/maps has the same function. */
static __always_inline __u32 ip_epoch_index(const struct addr *a, __u32 cluster)
{
	__u32 x = a->w[0] * 0x85EBCA6B + a->w[1] * 0xC2B2AE35 + a->w[2] * 0x27D4EB2F +
	          a->w[3] * 0x9E3779B1 + cluster * 0x165667B1;

	x ^= x >> 15;
	return (x * 0x9E3779B1) >> (32 - IP_EPOCH_BITS);
}

/* The sum of two counters that only grow changes with each. */
static __always_inline __u32 ip_epoch4(__be32 a)
{
	struct addr full = addr4(a);
	__u32 i = ip_epoch_index(&full, 0), last = IP_EPOCHS, epoch = 0;
	__u32 *counter = bpf_map_lookup_elem(&ipcache_epochs, &i);

	if (counter)
		epoch = READ_ONCE(*counter);
	counter = bpf_map_lookup_elem(&ipcache_epochs, &last);
	if (counter)
		epoch += READ_ONCE(*counter);
	barrier();
	return epoch;
}

static __always_inline struct ip_entry *ipcache_exact4(__be32 a)
{
	struct ip_key key = {.addr = addr4(a)};

	return bpf_map_lookup_elem(&ipcache, &key);
}

static __always_inline struct ip_entry *ipcache_prefix4(__be32 a)
{
	struct ip_prefix key = {.bits = IP_PREFIX_BITS, .addr = addr4(a)};

	return bpf_map_lookup_elem(&ipcache_prefix, &key);
}

static __always_inline struct ip_entry *ipcache_lookup4(__be32 a)
{
	struct ip_entry *e = ipcache_exact4(a);

	return e ? e : ipcache_prefix4(a);
}

static __always_inline struct node *node_by_id(__u32 id)
{
	return id ? bpf_map_lookup_elem(&nodes, &id) : NULL;
}

static __always_inline __u32 node_id_by_addr4(__be32 a)
{
	struct addr key = addr4(a);
	__u32 *id = bpf_map_lookup_elem(&node_addrs, &key);

	return id ? *id : 0;
}

/* The address space of ipBlocks: not who has an address but which prefixes of
 * NetworkPolicies it is in. */
#define BLOCK_SPACE 0xFFFFFFFF

/* The identity of the ipBlocks that an address is in; 0 is none. */
static __always_inline __u32 block_identity4(__be32 a)
{
	struct ip_key exact = {.addr = addr4(a), .cluster = BLOCK_SPACE};
	struct ip_prefix key = {.bits = IP_PREFIX_BITS, .cluster = BLOCK_SPACE, .addr = addr4(a)};
	struct ip_entry *e = bpf_map_lookup_elem(&ipcache, &exact);

	if (!e)
		e = bpf_map_lookup_elem(&ipcache_prefix, &key);
	return e ? e->identity : 0;
}

/* The identity of what is outside the mesh: the CIDR identity that policy gave
 * it, else world. */
static __always_inline __u32 outside_identity(const struct ip_entry *e)
{
	if (e->flags & IP_WITHHELD)
		return ID_UNKNOWN;
	return e->identity >= ID_LOCAL_BASE ? e->identity : ID_WORLD;
}

/* That of an address. What the ipcache says of addresses behind a tunnel is not
 * believed here: the packet did not come through one. */
static __always_inline __u32 world_identity4(__be32 a)
{
	struct ip_entry *e = ipcache_lookup4(a);

	return e && !e->node ? outside_identity(e) : ID_WORLD;
}
