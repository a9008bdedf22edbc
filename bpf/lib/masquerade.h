/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Masquerade: what pods send to the outside through the underlay has the node's
 * address and a port of its own there, and its answers find back. */
#pragma once
#include "config.h"
#include "conntrack.h"
#include "icmp.h"
#include "nat.h"

struct snat_key {
	__be32 remote;
	__be16 remote_port;
	__be16 port; /* of the node; for ICMP the identifier */
	__u8 proto;
	__u8 pad[3];
};

struct snat_entry {
	__be32 addr; /* of the pod */
	__be16 port;
	__u16 pad;
	__u32 created; /* jiffies */
};

/* The agent deletes those whose flow is gone. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__type(key, struct snat_key);
	__type(value, struct snat_entry);
} snat4 SEC(".maps");

enum {
	SNAT_TRIES = 32,
	SNAT_STEP = 7919, /* a prime: tries spread over the range */
	FIB_NO_NEIGHBOUR = 7,
	FIB_FRAG_NEEDED = 8,
};

/* struct bpf_fib_lookup, as far as IPv4 uses it. */
struct fib_question {
	__u8 family;
	__u8 proto;
	__be16 sport;
	__be16 dport;
	__u16 tot_len; /* 0: the packet's; the answer is an MTU */
	__u32 ifindex;
	__u8 tos;
	__u8 pad[3];
	__be32 saddr;
	__u32 pad_saddr[3];
	__be32 daddr;
	__u32 pad_daddr[3];
	__u32 vlan;
	__u8 macs[2 * ETH_ALEN];
};

_Static_assert(sizeof(struct fib_question) == 64, "struct bpf_fib_lookup has 64 bytes");

enum route_out {
	OUT_ELSEWHERE = 0, /* the stack's matter */
	OUT_UNDERLAY = 1,
};

/* Whether the node routes the packet out of the underlay, or a drop. */
static __always_inline int route_out(struct __sk_buff *skb, __be32 saddr, __be32 daddr)
{
	struct fib_question q = {
	    .family = 2 /* AF_INET */, .ifindex = skb->ifindex, .saddr = saddr, .daddr = daddr};
	long ret = bpf_fib_lookup(skb, &q, sizeof(q), 0);

	if (ret == FIB_FRAG_NEEDED && q.ifindex == underlay_ifindex)
		return -DROP_PACKET_TOO_BIG;
	/* without a neighbour yet, redirect_neigh asks for it */
	if ((ret == 0 || ret == FIB_NO_NEIGHBOUR) && q.ifindex == underlay_ifindex)
		return OUT_UNDERLAY;
	return OUT_ELSEWHERE;
}

/* Takes a port for a new flow of a pod. Returns it, 0 when the flow does not
 * leave through the underlay, or a negative drop reason. Global: see nat4_write. */
__attribute__((noinline)) int snat_open(struct __sk_buff *skb, __u32 saddr, __u32 daddr,
                                        __u32 ports, __u32 proto)
{
	struct snat_key key = {.remote = daddr, .remote_port = ports, .proto = proto};
	struct snat_entry e = {.addr = saddr, .port = ports >> 16, .created = bpf_jiffies64()};
	__u32 pick = bpf_get_prandom_u32(), i;
	int ret = route_out(skb, saddr, daddr);

	if (ret != OUT_UNDERLAY)
		return ret;
	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP && proto != IPPROTO_ICMP)
		return -DROP_UNSUPPORTED_PROTOCOL;
	for (i = 0; i < SNAT_TRIES; i++) {
		__u32 port = snat_first + (pick + i * SNAT_STEP) % snat_ports;

		key.port = bpf_htons(port);
		if (!bpf_map_update_elem(&snat4, &key, &e, BPF_NOEXIST))
			return port & 0xFFFF;
	}
	return -DROP_NO_SNAT_PORT;
}

/* Gives the flow a port if it wants one. t is the packet's tuple as it leaves. */
static __always_inline int snat_flow(struct __sk_buff *skb, struct packet *p,
                                     const struct tuple4 *t, struct ct_entry *e)
{
	int ret;

	if (!snat_ports || e->snat_port)
		return 0;
	ret = snat_open(skb, t->saddr, t->daddr, port_pair(t->sport, t->dport), t->proto);
	if (ret < 0) {
		p->line = __LINE__;
		return ret < -DROP_REASONS ? -DROP_REWRITE_FAILED : ret;
	}
	e->snat_port = ret;
	return 0;
}

/* Out by the underlay, as a router does it. */
static __always_inline int snat_leave(struct __sk_buff *skb)
{
	struct iphdr *ip = data(skb) + ETH_HLEN;

	if ((void *)(ip + 1) > data_end(skb))
		return -DROP_REWRITE_FAILED;
	ip->check =
	    csum_fold_diff(ip->check, *(__be16 *)&ip->ttl, (ip->ttl - 1) | ip->protocol << 8);
	ip->ttl--;
	return bpf_redirect_neigh(underlay_ifindex, NULL, 0, 0);
}

/* Sends the packet out with the node's address. A packet whose time is over is
 * left to the stack, which says so. Global: see nat4_write. */
__attribute__((noinline)) int snat_send(struct __sk_buff *skb, __u32 port, __u32 later)
{
	struct iphdr *ip = data(skb) + ETH_HLEN;
	struct udphdr *l4 = (void *)(ip + 1);
	__be16 dport = 0;

	if ((void *)(ip + 1) > data_end(skb))
		return -DROP_MALFORMED;
	if (ip->ttl <= 1)
		return TC_ACT_OK;
	if (!later && ip->protocol != IPPROTO_ICMP) {
		if ((void *)(l4 + 1) > data_end(skb))
			return -DROP_MALFORMED;
		dport = l4->dest;
	}
	if (nat4_write(skb, node_addr4, ip->daddr, port_pair(bpf_htons(port), dport), later))
		return -DROP_REWRITE_FAILED;
	return snat_leave(skb);
}

/* Sends a pod's ICMP error about an answer out with the node's address, as one about
 * what came to the node. Global: see nat4_write. */
__attribute__((noinline)) int snat_error(struct __sk_buff *skb, __u32 port)
{
	struct iphdr *ip = data(skb) + ETH_HLEN;

	if ((void *)(ip + 1) > data_end(skb))
		return -DROP_MALFORMED;
	if (ip->ttl <= 1)
		return -DROP_MALFORMED; /* an error about an error there is none (RFC 1122) */
	if (related_write(skb, QUOTED_DESTINATION, node_addr4, bpf_htons(port)))
		return -DROP_REWRITE_FAILED;
	return snat_leave(skb);
}

/* The pod that an answer is for. */
static __always_inline struct snat_entry *snat_find(__be32 remote, __be16 remote_port, __be16 port,
                                                    __u8 proto)
{
	struct snat_key key = {
	    .remote = remote, .remote_port = remote_port, .port = port, .proto = proto};

	return bpf_map_lookup_elem(&snat4, &key);
}
