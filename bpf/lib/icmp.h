/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ICMP errors that belong to a flow. Those we send are in reject.h. */
#pragma once
#include "conntrack.h"
#include "nat.h"
#include "parse.h"

/* Finds the flow of the packet that the error quotes. The error must go to the
 * quoted packet's sender. */
static __always_inline struct ct_entry *related_flow(struct __sk_buff *skb, __u32 off,
                                                     struct packet *p, struct flow *f,
                                                     struct tuple4 *quoted)
{
	if (parse_quoted(skb, off, p, quoted))
		return NULL;
	if (quoted->saddr != p->t.daddr)
		return NULL;
	flow_key(f, quoted);
	return ct_find(f);
}

enum quoted_end {
	QUOTED_SOURCE = 0,
	QUOTED_DESTINATION = 1,
};

/* Translates one end of the packet that an ICMP error quotes, and of the error
 * itself. The quoted IP checksum makes up for the quoted address, so the error's
 * checksum changes by the port only. Global: see nat4_write. */
__attribute__((noinline)) int related_write(struct __sk_buff *skb, __u32 end, __u32 addr,
                                            __u32 port)
{
	int check = ETH_HLEN + IP_HLEN + __builtin_offsetof(struct icmphdr, check);
	int dest = end == QUOTED_DESTINATION;
	__be32 old_addr;
	__be16 old_port;
	struct iphdr *ip, *inner;
	struct udphdr *l4;
	struct icmphdr *echo;

	pull(skb, ETH_HLEN + 2 * IP_HLEN + sizeof(struct icmphdr) + sizeof(*l4));
	ip = data(skb) + ETH_HLEN;
	inner = (void *)(ip + 1) + sizeof(struct icmphdr);
	l4 = (void *)(inner + 1);
	echo = (void *)(inner + 1);
	if ((void *)(l4 + 1) > data_end(skb))
		return -1;
	old_addr = dest ? inner->daddr : inner->saddr;
	if (dest && ip->saddr == old_addr) {
		ip->check = csum_fold_diff(ip->check, old_addr, addr);
		ip->saddr = addr;
	}
	if (!dest && ip->daddr == old_addr) {
		ip->check = csum_fold_diff(ip->check, old_addr, addr);
		ip->daddr = addr;
	}
	inner->check = csum_fold_diff(inner->check, old_addr, addr);
	if (dest)
		inner->daddr = addr;
	else
		inner->saddr = addr;
	if (inner->protocol == IPPROTO_ICMP) {
		old_port = echo->id;
		echo->id = port;
	} else if (dest) {
		old_port = l4->dest;
		l4->dest = port;
	} else {
		old_port = l4->source;
		l4->source = port;
	}
	if (old_port == (__be16)port)
		return 0;
	return bpf_l4_csum_replace(skb, check, old_port, (__be16)port, sizeof(old_port)) ? -1 : 0;
}

/* An error about a packet to a backend becomes one about the packet that the
 * client sent to the service; one about a reply of the service becomes one about
 * the backend's. */
static __always_inline int related_nat4(struct __sk_buff *skb, struct packet *p, __u32 end,
                                        __be32 addr, __be16 port)
{
	return related_write(skb, end, addr, port) ? DROP(p, DROP_REWRITE_FAILED) : 0;
}
