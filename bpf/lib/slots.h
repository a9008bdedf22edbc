/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* IPv6 has programs of its own, to which those on the devices jump: nothing of
 * IPv6 is in the way of an IPv4 packet. The loader fills the slots. An IPv6
 * program begins anew with the packet, so it may be newer or older than the one
 * that jumps. */
#pragma once
#include "kernel.h"

enum slot {
	SLOT_FROM_POD6 = 0,
	SLOT_FROM_OVERLAY6 = 1, /* IPv6 in the tunnel, or beside it */
	SLOT_FROM_HOST6 = 2,
	SLOT_FROM_TUNNEL6 = 3, /* IPv6 out of the tunnel's device, where there is one */
	SLOTS = 4,
};

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, SLOTS);
	__type(key, __u32);
	__type(value, __u32);
} slots SEC(".maps");
