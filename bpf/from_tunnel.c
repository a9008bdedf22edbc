/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* from_tunnel: ingress of the device that takes the tunnel's headers off, where there
 * is one. from_overlay has let its packets up to it; here they are what they are in
 * from_overlay behind the headers. IPv6 is from_tunnel6's. */
#include "lib/device.h"

/* A packet that has not come by from_overlay is nobody's: by another device, from
 * this host, or in fragments. The device looks at Ethernet addresses, which mean
 * nothing here, and says that the packet is for another host. */
static __always_inline int from_device(struct __sk_buff *skb, struct packet *p)
{
	struct ethhdr *eth;
	int ret = device_received(skb, p);

	if (ret < 0)
		return ret;
	if (skb->mark != TUNNEL_MARK)
		return DROP(p, DROP_STRAY_TUNNEL);
	skb->mark = 0; /* it may go on to the host's stack */
	if (skb->pkt_type != PACKET_HOST && bpf_skb_change_type(skb, PACKET_HOST))
		return DROP(p, DROP_REWRITE_FAILED);
	pull(skb, ETH_HLEN + IP_HLEN + L4_MAX);
	eth = data(skb);
	if ((void *)(eth + 1) > data_end(skb))
		return DROP(p, DROP_MALFORMED);
	if (eth->proto != bpf_htons(ETH_P_IP)) {
		if (eth->proto == bpf_htons(ETH_P_IPV6))
			bpf_tail_call(skb, &slots, SLOT_FROM_TUNNEL6);
		return DROP(p, DROP_UNSUPPORTED_PROTOCOL);
	}
	ret = parse4(skb, ETH_HLEN, p);
	return ret < 0 ? ret : from_sender(skb, p, ETH_HLEN);
}

SEC("tc")
int from_tunnel(struct __sk_buff *skb)
{
	struct packet *p = new_packet(skb, PROG_FROM_OVERLAY, DIR_INGRESS);

	return p ? finish(p, from_device(skb, p)) : TC_ACT_SHOT;
}

SEC("tc")
int from_tunnel6(struct __sk_buff *skb)
{
	struct packet *p = new_packet(skb, PROG_FROM_OVERLAY, DIR_INGRESS);
	struct packet6 *x = packet6_in_hand();
	int ret;

	if (!p || !x)
		return TC_ACT_SHOT;
	ret = device_received(skb, p);
	if (ret < 0)
		return finish(p, ret);
	pull(skb, ETH_HLEN + IP6_HLEN + L4_MAX);
	return finish(p, from_sender6(skb, p, x, ETH_HLEN));
}
