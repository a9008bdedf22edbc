/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* from_stack: egress of the node's end of the host veth. What the node's own stack
 * sends and what it merely forwards look alike at the other end; only here the
 * kernel still says where a packet came in. */
#include "lib/event.h"
#include "lib/forwarded.h"
#include "lib/scratch.h"

static __always_inline int mark_forwarded(struct __sk_buff *skb)
{
	__u8 first = 0;

	if (bpf_skb_load_bytes(skb, SOURCE_MAC, &first, sizeof(first)))
		return -1;
	first |= MAC_GROUP;
	return bpf_skb_store_bytes(skb, SOURCE_MAC, &first, sizeof(first), 0);
}

SEC("tc")
int from_stack(struct __sk_buff *skb)
{
	struct packet *p;

	/* Nowhere, or by the loopback device: it began here. */
	if (likely(skb->ingress_ifindex <= LOOPBACK_IFINDEX) || !mark_forwarded(skb))
		return TC_ACT_OK;
	p = new_packet(skb, PROG_FROM_HOST, DIR_INGRESS);
	return p ? finish(p, DROP(p, DROP_REWRITE_FAILED)) : TC_ACT_SHOT;
}
