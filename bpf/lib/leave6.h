/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The last steps of an IPv6 packet whose way is decided: whether it fits, its
 * translation, and off. */
#pragma once
#include "deliver6.h"
#include "icmp6.h"
#include "masquerade6.h"
#include "nat6.h"

enum change6 {
	CHANGE_NOTHING = 0,
	CHANGE_PACKET = 1, /* to packet6's to */
	CHANGE_QUOTED_SOURCE = 2,
	CHANGE_QUOTED_DESTINATION = 3,
};

static __always_inline void leave_by(struct packet6 *x, const struct route *r, __u32 vni,
                                     __u32 hash, __u16 change)
{
	x->out.hop = r->hop;
	x->out.vni = vni;
	x->out.hash = hash;
	x->out.change = change;
	x->out.snat = 0;
	if (r->hop == HOP_LOCAL && r->ep) {
		x->out.ifindex = r->ep->ifindex;
		__builtin_memcpy(x->out.pod_mac, r->ep->pod_mac, ETH_ALEN);
		__builtin_memcpy(x->out.host_mac, r->ep->host_mac, ETH_ALEN);
	}
}

static __always_inline int change6(struct __sk_buff *skb, struct packet *p, struct packet6 *x)
{
	switch (x->out.change) {
	case CHANGE_PACKET:
		return nat6(skb, p);
	case CHANGE_QUOTED_SOURCE:
		return related_nat6(skb, p, x, QUOTED_SOURCE, &x->nat, x->out.port);
	case CHANGE_QUOTED_DESTINATION:
		return related_nat6(skb, p, x, QUOTED_DESTINATION, &x->nat, x->out.port);
	}
	return 0;
}

/* Sends the packet as leave_by has noted. Whether it fits is asked before it is
 * translated, so that an ICMPv6 answer quotes what the sender sent. Global, so that
 * the verifier walks it once, not behind every decision. */
__attribute__((noinline)) int leave6(struct __sk_buff *skb)
{
	struct packet6 *x = packet6_in_hand();
	struct packet *p = packet_in_hand();
	struct node *node = NULL;
	__u32 hop;
	int ret;

	if (!x || !p)
		return -DROP_REWRITE_FAILED;
	hop = x->out.hop;
	if (hop != HOP_LOCAL && hop != HOP_HOST && hop != HOP_WORLD) {
		node = node_by_id(hop);
		if (!node)
			return DROP(p, DROP_NO_TUNNEL_ENDPOINT);
		ret = tunnel_fits6(skb, p, x, node);
		if (ret < 0)
			return ret;
	}
	if (hop == HOP_WORLD && masquerades6() && x->out.snat) {
		ret = snat_fits6(skb);
		if (ret < 0)
			return ret < -DROP_REASONS ? DROP(p, DROP_REWRITE_FAILED) : ret;
		if (x->hop_limit <= 1 && p->icmp_error)
			return DROP(p, DROP_MALFORMED); /* no error about an error (RFC 4443) */
		if (p->icmp_error) {
			ret = change6(skb, p, x);
			if (ret < 0)
				return ret;
		}
		if (x->hop_limit > 1)
			return snat_send6(skb, p, x);
	}
	ret = change6(skb, p, x);
	if (ret < 0)
		return ret;
	if (node)
		return tunnel_wrap(skb, p, node, hop, x->out.vni, x->out.hash, ETH_HLEN + x->h.l4,
		                   bpf_htons(ETH_P_IPV6));
	if (hop == HOP_HOST)
		return to_own_host(skb, p);
	if (hop == HOP_WORLD)
		return TC_ACT_OK;
	ret = set_macs(skb, p, x->out.pod_mac, x->out.host_mac);
	return ret < 0 ? ret : bpf_redirect_peer(x->out.ifindex, 0);
}
