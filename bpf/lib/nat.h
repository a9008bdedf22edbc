/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Changing a packet's addresses and ports. */
#pragma once
#include "parse.h"

/* The address that an endpoint sees as client when it serves itself. */
#define HAIRPIN_ADDR4 bpf_htonl(0xA9FE2A01) /* 169.254.42.1 */

static __always_inline __u32 csum_fold_diff(__sum16 check, __be32 from, __be32 to)
{
	__u32 sum = (__u16)~check;

	sum += (__u16)~from + (__u16) ~(from >> 16);
	sum += (to & 0xFFFF) + (to >> 16);
	sum = (sum & 0xFFFF) + (sum >> 16);
	sum = (sum & 0xFFFF) + (sum >> 16);
	return (__u16)~sum;
}

static __always_inline int l4_csum_offset(__u8 proto)
{
	if (proto == IPPROTO_TCP)
		return ETH_HLEN + IP_HLEN + __builtin_offsetof(struct tcphdr, check);
	return ETH_HLEN + IP_HLEN + __builtin_offsetof(struct udphdr, check);
}

/* L4 checksums go through the helper: a packet from a veth usually has a
 * partial one, which a direct update would corrupt. */
static __always_inline int nat4_csum(struct __sk_buff *skb, const struct tuple4 *from,
                                     const struct tuple4 *to)
{
	__u64 flags = from->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	int off = l4_csum_offset(from->proto);
	long err = 0;

	if (from->saddr != to->saddr)
		err |= bpf_l4_csum_replace(skb, off, from->saddr, to->saddr,
		                           flags | BPF_F_PSEUDO_HDR | sizeof(to->saddr));
	if (from->daddr != to->daddr)
		err |= bpf_l4_csum_replace(skb, off, from->daddr, to->daddr,
		                           flags | BPF_F_PSEUDO_HDR | sizeof(to->daddr));
	if (from->sport != to->sport)
		err |= bpf_l4_csum_replace(skb, off, from->sport, to->sport,
		                           flags | sizeof(to->sport));
	if (from->dport != to->dport)
		err |= bpf_l4_csum_replace(skb, off, from->dport, to->dport,
		                           flags | sizeof(to->dport));
	return err ? -1 : 0;
}

/* Rewrites the TCP or UDP packet behind the Ethernet header. */
static __always_inline int nat4(struct __sk_buff *skb, struct packet *p, const struct tuple4 *to)
{
	struct tuple4 from = p->t;
	struct iphdr *ip;
	struct udphdr *l4;

	if (from.proto != IPPROTO_TCP && from.proto != IPPROTO_UDP)
		return DROP(p, DROP_REWRITE_FAILED);
	if (nat4_csum(skb, &from, to))
		return DROP(p, DROP_REWRITE_FAILED);
	ip = data(skb) + ETH_HLEN;
	l4 = (void *)(ip + 1);
	if ((void *)(l4 + 1) > data_end(skb))
		return DROP(p, DROP_REWRITE_FAILED);
	ip->check = csum_fold_diff(ip->check, from.saddr, to->saddr);
	ip->check = csum_fold_diff(ip->check, from.daddr, to->daddr);
	ip->saddr = to->saddr;
	ip->daddr = to->daddr;
	l4->source = to->sport;
	l4->dest = to->dport;
	return 0;
}
