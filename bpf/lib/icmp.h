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

/* Translates an error about a packet to a backend into one about the packet
 * that the client sent to the service. The inner IP checksum makes up for the
 * inner address, so the ICMP checksum changes by the port only. */
static __always_inline int related_nat4(struct __sk_buff *skb, struct packet *p,
                                        const struct tuple4 *quoted, __be32 vip, __be16 port)
{
	int check = ETH_HLEN + IP_HLEN + __builtin_offsetof(struct icmphdr, check);
	struct iphdr *ip, *inner;
	struct udphdr *l4;

	if (quoted->dport != port &&
	    bpf_l4_csum_replace(skb, check, quoted->dport, port, sizeof(port)))
		return DROP(p, DROP_REWRITE_FAILED);
	pull(skb, ETH_HLEN + 2 * IP_HLEN + sizeof(struct icmphdr) + sizeof(*l4));
	ip = data(skb) + ETH_HLEN;
	inner = (void *)(ip + 1) + sizeof(struct icmphdr);
	l4 = (void *)(inner + 1);
	if ((void *)(l4 + 1) > data_end(skb))
		return DROP(p, DROP_REWRITE_FAILED);
	if (ip->saddr == quoted->daddr) {
		ip->check = csum_fold_diff(ip->check, ip->saddr, vip);
		ip->saddr = vip;
	}
	inner->check = csum_fold_diff(inner->check, inner->daddr, vip);
	inner->daddr = vip;
	l4->dest = port;
	return 0;
}
