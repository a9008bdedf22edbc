/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What from_stack tells from_host of a packet on its way over the host veth: that the
 * node has not sent it but forwarded it. It is said by the source's MAC address,
 * which can be no group's otherwise; marks are the operator's. */
#pragma once
#include "parse.h"

enum {
	LOOPBACK_IFINDEX = 1,  /* in every network namespace */
	SOURCE_MAC = ETH_ALEN, /* where it is in a packet */
	MAC_GROUP = 1 << 0,    /* of a MAC address's first byte */
};

/* The caller has pulled. */
static __always_inline int is_forwarded(struct __sk_buff *skb)
{
	struct ethhdr *eth = data(skb);

	return (void *)(eth + 1) > data_end(skb) || eth->src[0] & MAC_GROUP;
}
