/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* ARP (RFC 826): every address but the asker's own is behind us. */
#pragma once
#include "drop.h"
#include "parse.h"

/* Answers a request that came in on this device with mac. own is the address
 * that the asker has itself: a probe for it stays unanswered. */
static __always_inline int answer_arp(struct __sk_buff *skb, struct packet *p, const __u8 *mac,
                                      __be32 own)
{
	struct arphdr *arp;
	struct ethhdr *eth;
	__be32 target;

	pull(skb, ETH_HLEN + sizeof(*arp));
	eth = data(skb);
	arp = (void *)(eth + 1);
	if ((void *)(arp + 1) > data_end(skb))
		return DROP(p, DROP_MALFORMED);
	if (arp->op != bpf_htons(ARP_REQUEST) ||
	    arp->hardware != bpf_htons(ARP_HARDWARE_ETHERNET) ||
	    arp->protocol != bpf_htons(ETH_P_IP))
		return DROP(p, DROP_UNSUPPORTED_PROTOCOL);
	target = arp->target_ip;
	if (target == own || target == arp->sender_ip)
		return DROP(p,
		            DROP_LINK_TALK); /* an announcement, or a probe for its own address */
	arp->op = bpf_htons(ARP_REPLY);
	__builtin_memcpy(arp->target_mac, arp->sender_mac, ETH_ALEN);
	arp->target_ip = arp->sender_ip;
	__builtin_memcpy(arp->sender_mac, mac, ETH_ALEN);
	arp->sender_ip = target;
	__builtin_memcpy(eth->dst, arp->target_mac, ETH_ALEN);
	__builtin_memcpy(eth->src, mac, ETH_ALEN);
	return bpf_redirect(skb->ifindex, 0);
}
