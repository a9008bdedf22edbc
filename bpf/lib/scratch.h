/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The packet in hand, outside of the stack: the verifier does not follow what is
 * in a map, so states that differ in the packet only are one to it, and global
 * functions reach it too. A CPU has one packet in hand at a time. */
#pragma once
#include "types.h"

/* struct bpf_tunnel_key, as far as IPv4 uses it; addresses in host order. */
struct tunnel_key {
	__u32 id;
	__u32 remote;
	__u32 pad_remote[3];
	__u8 tos;
	__u8 ttl;
	__u16 pad;
	__u32 label;
	/* Before Linux 5.19 there is none (tunnel_key_size): the route says which of its
	 * addresses the node sends from. */
	__u32 local;
	__u32 pad_local[3];
};

_Static_assert(sizeof(struct tunnel_key) == 44, "struct bpf_tunnel_key has 44 bytes");

/* What policy_first is to be asked about the flow of an ICMP error (related.h), and
 * what that follows from. */
struct ask {
	__u64 rules;
	__u64 who;
	__u32 peer;
	__u32 addr;
	__u32 what;
	__be32 here; /* the flow's end that is a pod of this node, and the other */
	__be32 there;
	__u32 port;
	__u32 flow; /* enum related */
} __attribute__((packed, aligned(4)));

struct in_hand {
	struct packet packet;
	struct ask ask;
	struct tunnel_key key; /* with which it goes to the tunnel's device */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct in_hand);
} scratch SEC(".maps");

static __always_inline struct in_hand *in_hand(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}

static __always_inline struct packet *packet_in_hand(void)
{
	struct in_hand *h = in_hand();

	return h ? &h->packet : NULL;
}

static __always_inline struct packet *new_packet(const struct __sk_buff *skb, __u8 program,
                                                 __u8 direction)
{
	struct packet *p = packet_in_hand();

	if (p) {
		__builtin_memset(p, 0, sizeof(*p));
		p->len = skb->len;
		p->program = program;
		p->direction = direction;
	}
	return p;
}
