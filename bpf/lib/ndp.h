/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Neighbour discovery (RFC 4861): as with ARP every address but the asker's own is
 * behind us. What a host tells its link beside (its listeners, its addresses,
 * duplicate address detection) is heard and ends here. There are no routers to
 * find: addresses and routes come with the device. */
#pragma once
#include "drop.h"
#include "parse6.h"
#include "reject.h"

struct advertisement {
	struct ipv6hdr ip;
	struct ndphdr nd;
	struct ndp_option link;
};

/* What an ICMPv6 checksum covers beside the message (RFC 8200, 8.1). */
struct pseudo_header6 {
	struct addr saddr;
	struct addr daddr;
	__be32 len;
	__be32 proto;
};

/* The checksum of size bytes behind the IPv6 header, a constant multiple of 4. */
static __always_inline __sum16 l4_check6(const struct ipv6hdr *ip, void *l4, __u32 size, __u8 proto)
{
	struct pseudo_header6 ph = {.saddr = ip->saddr,
	                            .daddr = ip->daddr,
	                            .len = bpf_htonl(size),
	                            .proto = bpf_htonl(proto)};
	__s32 sum = bpf_csum_diff(NULL, 0, (void *)&ph, sizeof(ph), 0);

	return fold(bpf_csum_diff(NULL, 0, l4, size, sum));
}

static __always_inline void fill_ipv6(struct ipv6hdr *ip, __u16 payload, __u8 hops)
{
	ip->version_class = bpf_htonl(6U << 28);
	ip->payload_len = bpf_htons(payload);
	ip->nexthdr = IPPROTO_ICMPV6;
	ip->hop_limit = hops;
}

/* Turns a solicitation into the advertisement that answers it. The words of mac
 * come by value: global functions of kernels before 5.12 take only numbers. */
__attribute__((noinline)) int advertise(struct __sk_buff *skb, __u64 mac)
{
	struct packet6 *x = packet6_in_hand();
	struct advertisement *a;
	struct ethhdr *eth;
	struct addr target;

	if (!x ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + IP6_HLEN + __builtin_offsetof(struct ndphdr, target),
	                       &target, sizeof(target)))
		return -DROP_MALFORMED;
	if (bpf_skb_change_tail(skb, ETH_HLEN + sizeof(*a), 0))
		return -DROP_REWRITE_FAILED;
	pull(skb, ETH_HLEN + sizeof(*a));
	eth = data(skb);
	a = (void *)(eth + 1);
	if ((void *)(a + 1) > data_end(skb))
		return -DROP_REWRITE_FAILED;
	__builtin_memcpy(eth->dst, eth->src, ETH_ALEN);
#pragma unroll
	for (int i = 0; i < ETH_ALEN; i++) {
		eth->src[i] = mac >> 8 * i;
		a->link.mac[i] = mac >> 8 * i;
	}
	fill_ipv6(&a->ip, sizeof(*a) - IP6_HLEN, IP6_HOPS_LINK);
	a->ip.daddr = x->t.saddr;
	a->ip.saddr = target;
	a->nd.type = ICMP6_NEIGHBOUR_ADVERTISEMENT;
	a->nd.code = 0;
	a->nd.check = 0;
	a->nd.flags = bpf_htonl(NDP_ROUTER | NDP_SOLICITED | NDP_OVERRIDE);
	a->link.type = NDP_TARGET_ADDRESS;
	a->link.len = sizeof(a->link) / 8;
	a->nd.check = l4_check6(&a->ip, &a->nd, sizeof(*a) - IP6_HLEN, IPPROTO_ICMPV6);
	return bpf_redirect(skb->ifindex, 0);
}

static __always_inline __u64 mac_word(const __u8 *mac)
{
	const __u16 *w = (const __u16 *)mac;

	return w[0] | (__u64)w[1] << 16 | (__u64)w[2] << 32;
}

/* Answers with mac, for addresses that are not own. The caller has checked the
 * source. */
static __always_inline int solicitation(struct __sk_buff *skb, struct packet *p, struct packet6 *x,
                                        const __u8 *mac, const struct addr *own)
{
	struct addr target;
	int ret;

	if (p->icmp_code || x->h.l4 != IP6_HLEN || x->payload < sizeof(struct ndphdr) ||
	    bpf_skb_load_bytes(skb, ETH_HLEN + IP6_HLEN + __builtin_offsetof(struct ndphdr, target),
	                       &target, sizeof(target)) ||
	    is_multicast6(&target))
		return DROP(p, DROP_MALFORMED);
	if (is_unspecified6(&x->t.saddr) || (own && same_addr(&target, own)) ||
	    same_addr(&target, &x->t.saddr))
		return DROP(p, DROP_LINK_TALK); /* it looks for another that has its address */
	ret = advertise(skb, mac_word(mac));
	if (ret < 0)
		p->line = __LINE__;
	return ret;
}

/* What is said on a link of this node, to nobody beyond. */
static __always_inline int answer_ndp(struct __sk_buff *skb, struct packet *p, struct packet6 *x,
                                      const __u8 *mac, const struct addr *own)
{
	int discovery = p->icmp_type >= ICMP6_ROUTER_SOLICITATION && p->icmp_type <= ICMP6_REDIRECT;

	if (x->hop_limit != (discovery ? IP6_HOPS_LINK : 1) || x->h.fragment)
		return DROP(p, DROP_MALFORMED);
	if (!discovery || p->icmp_type == ICMP6_NEIGHBOUR_ADVERTISEMENT)
		return DROP(p, DROP_LINK_TALK);
	if (p->icmp_type == ICMP6_NEIGHBOUR_SOLICITATION)
		return solicitation(skb, p, x, mac, own);
	return p->icmp_type == ICMP6_ROUTER_SOLICITATION ? DROP(p, DROP_ROUTER_SOLICITATION)
	                                                 : DROP(p, DROP_UNSUPPORTED_PROTOCOL);
}
