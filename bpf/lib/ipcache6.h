/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What the maps of endpoint.h and ipcache.h know of IPv6 addresses. */
#pragma once
#include "ipcache.h"
#include "config.h"
#include "packet6.h"

/* IPv6 prefixes are in the trie under their cluster with this bit turned over:
 * ::/0 would else be found for IPv4 addresses, which are mapped. */
#define V6_SPACE 0x80000000

static __always_inline struct endpoint *endpoint_by_addr6(const struct addr *a)
{
	struct ip_key key = {.addr = *a};

	return bpf_map_lookup_elem(&endpoints, &key);
}

static __always_inline __u32 ip_epoch6(const struct addr *a)
{
	__u32 i = ip_epoch_index(a, 0), last = IP_EPOCHS, epoch = 0;
	__u32 *counter = bpf_map_lookup_elem(&ipcache_epochs, &i);

	if (counter)
		epoch = READ_ONCE(*counter);
	counter = bpf_map_lookup_elem(&ipcache_epochs, &last);
	if (counter)
		epoch += READ_ONCE(*counter);
	barrier();
	return epoch;
}

static __always_inline struct ip_entry *ipcache_exact6(const struct addr *a, __u32 cluster)
{
	struct ip_key key = {.addr = *a, .cluster = cluster};

	return bpf_map_lookup_elem(&ipcache, &key);
}

static __always_inline struct ip_entry *ipcache_prefix6(const struct addr *a, __u32 cluster)
{
	struct ip_prefix key = {.bits = IP_PREFIX_BITS, .cluster = cluster ^ V6_SPACE, .addr = *a};

	return bpf_map_lookup_elem(&ipcache_prefix, &key);
}

static __always_inline struct ip_entry *ipcache_lookup6(const struct addr *a, __u32 cluster)
{
	struct ip_entry *e = ipcache_exact6(a, cluster);

	return e ? e : ipcache_prefix6(a, cluster);
}

/* The identity of the ipBlocks that the peer in hand is in; 0 is none. */
static __always_inline __u32 block_identity6(void)
{
	struct packet6 *x = packet6_in_hand();
	struct ip_entry *e = x ? ipcache_lookup6(&x->peer, BLOCK_SPACE) : NULL;

	return e ? e->identity : 0;
}

/* See world_identity4: what is behind a tunnel has not come through it. */
static __always_inline __u32 world_identity6(const struct addr *a)
{
	struct ip_entry *e = ipcache_lookup6(a, 0);

	return e && !e->node ? outside_identity(e) : ID_WORLD;
}

/* Whether an address is this node's own in the mesh. */
static __always_inline int is_node_addr6(const struct addr *a)
{
	return a->w[3] == node_addr6[3] && a->w[2] == node_addr6[2] && a->w[1] == node_addr6[1] &&
	       a->w[0] == node_addr6[0] && !is_unspecified6(a);
}

static __always_inline int is_own_address6(const struct addr *a)
{
	struct ip_entry *ip;

	if (is_node_addr6(a))
		return 1;
	ip = ipcache_exact6(a, 0);
	return ip && ip->flags & IP_HOST;
}

/* Whether nodes of the mesh may ask for an address of this node. */
static __always_inline int is_mesh_address6(const struct addr *a)
{
	struct ip_entry *ip;

	if (is_node_addr6(a))
		return 1;
	ip = ipcache_exact6(a, 0);
	return ip && (ip->flags & (IP_HOST | IP_LOCAL)) == IP_HOST;
}
