/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* An IPv6 packet in hand: what the programs know of it beside struct packet. It is
 * too much for the stack, and in a map global functions reach it too. */
#pragma once
#include "types.h"

enum {
	IP6_HLEN = sizeof(struct ipv6hdr),
	L4_HEAD = sizeof(struct tcphdr), /* bytes of layer 4 that are looked at */
};

/* Where the extension headers of a packet lead (headers6.h). */
struct headers6 {
	__be32 id;      /* of the fragment header */
	__u16 l4;       /* bytes from the IPv6 header to what is behind the others */
	__u16 fragment; /* bytes from the IPv6 header to behind a fragment header, else 0 */
	__u16 offset;   /* of the fragment, bytes */
	__u8 more;      /* it is not the last fragment */
	__u8 proto;     /* of what is at l4; of a later fragment not known */
};

/* How a packet leaves (leave6.h). */
struct leaving6 {
	__u32 hop;
	__u32 vni;
	__u32 hash;
	__u32 ifindex; /* with HOP_LOCAL, and the addresses too */
	__u8 pod_mac[ETH_ALEN];
	__u8 host_mac[ETH_ALEN];
	__u16 change; /* enum change6 */
	__be16 port;  /* what that of the quoted packet's end becomes */
	__u32 snat;   /* the node's port that it leaves with, in host order; 0: none */
};

struct packet6 {
	struct tuple6 t;   /* as it came */
	struct tuple6 to;  /* as it goes on, or is judged */
	struct tuple6 key; /* of its flow: the lower address first */
	struct tuple6 after;
	struct tuple6 quoted; /* by an ICMPv6 error, seen from that packet's sender */
	struct headers6 h;
	struct headers6 inner; /* of the quoted packet */
	struct leaving6 out;
	struct addr peer; /* of which policy is asked */
	struct addr nat;  /* what an end of the quoted packet becomes */
	__u16 payload;    /* bytes behind the IPv6 header */
	__u8 hop_limit;
	__u8 control; /* neighbour discovery or multicast listeners */
	__u8 head[L4_HEAD];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet6);
} scratch6 SEC(".maps");

static __always_inline struct packet6 *packet6_in_hand(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch6, &zero);
}

static __always_inline int is_multicast6(const struct addr *a)
{
	return *(const __u8 *)a == 0xFF;
}

static __always_inline int is_link_local6(const struct addr *a)
{
	return (a->w[0] & bpf_htonl(0xFFC00000)) == bpf_htonl(0xFE800000);
}

static __always_inline int is_unspecified6(const struct addr *a)
{
	return !(a->w[0] | a->w[1] | a->w[2] | a->w[3]);
}

/* Addresses that are on no wire (RFC 4291): loopback, and those that stand for an
 * IPv4 address; mapped ones are how maps know IPv4. Others may be ::. */
static __always_inline int is_unroutable6(const struct addr *a)
{
	if (likely(a->w[0] | a->w[1]))
		return 0;
	return a->w[2] == V4_MAPPED || (!a->w[2] && a->w[3]);
}
