/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ICMP errors: those we send, and those that belong to a flow. */
#pragma once
#include "config.h"
#include "conntrack.h"
#include "nat.h"
#include "parse.h"
#include "tunnel.h"

struct frag_needed {
	struct iphdr ip;
	struct icmphdr icmp;
	struct iphdr quoted;
	__u8 l4[L4_MAX];
};

enum {
	FRAG_NEEDED_GROWTH = IP_HLEN + sizeof(struct icmphdr),
	FRAG_NEEDED_QUOTE = IP_HLEN + L4_MAX,
};

static __always_inline void swap_macs(struct ethhdr *eth)
{
#pragma unroll
	for (int i = 0; i < ETH_ALEN; i++) {
		__u8 b = eth->dst[i];

		eth->dst[i] = eth->src[i];
		eth->src[i] = b;
	}
}

/* Turns the packet into the ICMP error that tells its sender the path's MTU
 * (RFC 792, RFC 1191), and sends it back where it came from. */
static __always_inline int answer_frag_needed(struct __sk_buff *skb, const struct packet *p)
{
	struct frag_needed *f;
	struct ethhdr *eth;
	__s32 sum;

	if (bpf_skb_change_tail(skb, ETH_HLEN + FRAG_NEEDED_QUOTE, 0) ||
	    bpf_skb_adjust_room(skb, FRAG_NEEDED_GROWTH, BPF_ADJ_ROOM_MAC, 0))
		return TC_ACT_SHOT;
	eth = data(skb);
	f = (void *)(eth + 1);
	if ((void *)(f + 1) > data_end(skb))
		return TC_ACT_SHOT;
	swap_macs(eth);
	__builtin_memset(f, 0, FRAG_NEEDED_GROWTH);
	f->ip.version_ihl = IP_VERSION_IHL;
	f->ip.tot_len = bpf_htons(sizeof(*f));
	f->ip.ttl = IP_TTL;
	f->ip.protocol = IPPROTO_ICMP;
	f->ip.saddr = node_addr4;
	f->ip.daddr = p->t.saddr;
	f->ip.check = ip_check(&f->ip);
	f->icmp.type = ICMP_UNREACHABLE;
	f->icmp.code = ICMP_CODE_FRAG_NEEDED;
	f->icmp.seq = bpf_htons(p->mtu);
	sum = bpf_csum_diff(NULL, 0, &f->icmp, sizeof(f->icmp) + FRAG_NEEDED_QUOTE, 0);
	sum = (sum & 0xFFFF) + ((__u32)sum >> 16);
	sum = (sum & 0xFFFF) + ((__u32)sum >> 16);
	f->icmp.check = ~sum;
	return bpf_redirect(skb->ifindex, 0);
}

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
