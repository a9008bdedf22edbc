/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Where an IPv6 packet goes, and sending it there. */
#pragma once
#include "conntrack6.h"
#include "deliver.h"
#include "ipcache6.h"
#include "parse6.h"

/* See route4. What is of one link is for nobody behind it, and least of all for
 * this node's ends of its links. */
static __always_inline int route6(struct packet *p, const struct addr *daddr, struct route *r)
{
	struct ip_entry *ip;

	r->epoch = ip_epoch6(daddr);
	r->ep = endpoint_by_addr6(daddr);
	if (r->ep) {
		r->hop = HOP_LOCAL;
		r->identity = r->ep->identity;
		return 0;
	}
	r->hop = HOP_WORLD;
	r->identity = ID_WORLD;
	if (is_link_local6(daddr))
		return DROP(p, DROP_UNKNOWN_DESTINATION);
	ip = ipcache_lookup6(daddr, 0);
	if (!ip)
		return 0;
	r->identity = ip->identity;
	if (ip->flags & IP_HOST)
		r->hop = HOP_HOST;
	else if (ip->node)
		r->hop = ip->node;
	else if (ip->flags & IP_CIDR)
		return DROP(p, DROP_UNKNOWN_DESTINATION); /* ours, and no pod has it */
	return 0;
}

static __always_inline __u32 segment_header6(struct __sk_buff *skb, const struct packet *p,
                                             const struct packet6 *x)
{
	__u8 offset = sizeof(struct tcphdr) / 4 << 4;

	if (p->t.proto != IPPROTO_TCP)
		return sizeof(struct udphdr);
	bpf_skb_load_bytes(skb, ETH_HLEN + x->h.l4 + __builtin_offsetof(struct tcphdr, offset),
	                   &offset, sizeof(offset));
	return (offset >> 4) * 4;
}

/* See tunnel_fits. */
static __always_inline int tunnel_fits6(struct __sk_buff *skb, struct packet *p,
                                        const struct packet6 *x, const struct node *node)
{
	__u32 mtu = 0, len = skb->len - ETH_HLEN;

	if (likely(fits_surely(skb, p, node)))
		return 0;
	if (skb->gso_size)
		len = x->h.l4 + segment_header6(skb, p, x) + skb->gso_size;
	if (bpf_check_mtu(skb, underlay_ifindex, &mtu, 0, 0) < 0 && !mtu)
		return DROP(p, DROP_NO_TUNNEL_ENDPOINT);
	if (node->mtu && node->mtu < mtu)
		mtu = node->mtu;
	if (p->tcp_flags & TCP_SYN)
		p->mss = mtu - TUNNEL_OVERHEAD - IP6_HLEN - sizeof(struct tcphdr);
	if (likely(len + TUNNEL_OVERHEAD <= mtu))
		return 0;
	p->mtu = mtu - TUNNEL_OVERHEAD;
	return DROP(p, DROP_PACKET_TOO_BIG);
}

/* Takes the tunnel's headers off an IPv6 packet. The kernel must learn what it is
 * now; where stripping cannot tell it (before Linux 6.3), turning the outer
 * header, which goes anyway, into one of IPv6 does. */
static __always_inline int tunnel_strip6(struct __sk_buff *skb, struct packet *p)
{
	__s32 len = TUNNEL_OVERHEAD;
	struct ethhdr *eth;

	if (!decap6_flag) {
		if (bpf_skb_change_proto(skb, bpf_htons(ETH_P_IPV6), 0))
			return DROP(p, DROP_REWRITE_FAILED);
		len += IP6_HLEN - IP_HLEN;
	}
	if (bpf_skb_adjust_room(skb, -len, BPF_ADJ_ROOM_MAC,
	                        BPF_F_ADJ_ROOM_FIXED_GSO | decap6_flag))
		return DROP(p, DROP_REWRITE_FAILED);
	pull(skb, ETH_HLEN + IP6_HLEN + L4_MAX);
	eth = data(skb);
	if ((void *)(eth + 1) > data_end(skb))
		return DROP(p, DROP_REWRITE_FAILED);
	eth->proto = bpf_htons(ETH_P_IPV6);
	return 0;
}

/* See check_external. */
static __always_inline int check_external6(struct packet *p, const struct packet6 *x, __u32 sender)
{
	struct vtep *v = bpf_map_lookup_elem(&vteps, &sender);
	struct ip_entry *ip;

	if (!v || p->src_id != v->vni)
		return DROP(p, DROP_SPOOFED_IDENTITY);
	ip = ipcache_lookup6(&x->t.saddr, 0);
	if (!ip || ip->node != sender)
		return DROP(p, DROP_SPOOFED_SOURCE);
	p->src_id = outside_identity(ip);
	return 0;
}

/* See knows_packet. */
static __always_inline int knows_packet6(const struct packet *p, const struct packet6 *x,
                                         __u32 sender, const struct addr *daddr)
{
	struct ip_entry *ip;

	if (same_addr(&x->t.saddr, daddr))
		return 1;
	if (is_workload(p->src_id))
		return 0;
	ip = ipcache_lookup6(daddr, 0);
	return ip && ip->node == sender;
}

/* See check_sender. */
static __always_inline int check_sender6(struct packet *p, const struct packet6 *x, __u32 sender,
                                         const struct node *node)
{
	struct ip_entry *ip = ipcache_exact6(&x->t.saddr, 0);
	__u32 id = p->src_id;

	if (unlikely(node->cluster == CLUSTER_EXTERNAL))
		return check_external6(p, x, sender);
	if (id <= ID_MAX_RESERVED && id != ID_REMOTE_NODE && id != ID_HEALTH)
		return DROP(p, DROP_SPOOFED_IDENTITY);
	if (id > ID_MAX_RESERVED && id >> identity_shift != node->cluster)
		return DROP(p, DROP_SPOOFED_IDENTITY);
	if (id <= ID_MAX_RESERVED)
		return ip && ip->node == sender && ip->flags & IP_REMOTE_NODE
		           ? 0
		           : DROP(p, DROP_SPOOFED_SOURCE);
	if (ip) {
		if (ip->node != sender || ip->flags & IP_REMOTE_NODE)
			return DROP(p, DROP_SPOOFED_SOURCE);
	} else {
		ip = ipcache_prefix6(&x->t.saddr, 0);
		if (!ip || ip->node != sender || !(ip->flags & IP_CIDR))
			return DROP(p, DROP_SPOOFED_SOURCE);
	}
	if (!bpf_map_lookup_elem(&identities, &id))
		return DROP(p, DROP_IDENTITY_UNKNOWN);
	return 0;
}
