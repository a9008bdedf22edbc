/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The packet in hand, outside of the stack: the verifier does not follow what is
 * in a map, so states that differ in the packet only are one to it, and global
 * functions reach it too. A CPU has one packet in hand at a time. */
#pragma once
#include "types.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct packet);
} scratch SEC(".maps");

static __always_inline struct packet *packet_in_hand(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
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
