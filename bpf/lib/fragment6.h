/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Fragments of IPv6 (RFC 8200, 4.5). As with IPv4 the first one tells what the
 * others are, and with IPv6 also which protocol they carry: a later fragment does
 * not have to know. */
#pragma once
#include "fragment.h"

struct fragment6_key {
	struct addr saddr;
	struct addr daddr;
	__u32 from; /* the outer source, or the device: who may speak of these fragments */
	__be32 id;
	__u32 program;
};

struct fragment6_ports {
	__be16 sport;
	__be16 dport;
	__u16 end; /* bytes of the datagram that the first fragment has */
	__u8 proto;
	__u8 pad;
	__u32 seen; /* s of the monotonic clock */
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct fragment6_key);
	__type(value, struct fragment6_ports);
} fragments6 SEC(".maps");
