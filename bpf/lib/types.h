/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* What every program says about the packet in its hands. */
#pragma once
#include "kernel.h"

enum {
	NSEC_PER_SEC = 1000000000,
};

#define V4_MAPPED bpf_htonl(0xFFFF)

static __always_inline struct addr addr4(__be32 a)
{
	struct addr r = {.w = {0, 0, V4_MAPPED, a}};
	return r;
}

static __always_inline int is_addr4(const struct addr *x, __be32 a)
{
	return x->w[3] == a && x->w[2] == V4_MAPPED && !x->w[1] && !x->w[0];
}

static __always_inline int same_addr(const struct addr *a, const struct addr *b)
{
	return a->w[3] == b->w[3] && a->w[2] == b->w[2] && a->w[1] == b->w[1] && a->w[0] == b->w[0];
}

/* Reserved identities, as in package identity. */
enum identity {
	ID_UNKNOWN = 0,
	ID_HOST = 1,
	ID_WORLD = 2,
	ID_HEALTH = 4,
	ID_REMOTE_NODE = 6,
	ID_MAX_RESERVED = 255,
	ID_LOCAL_BASE = 1 << 24, /* CIDR identities; never on the wire */
	/* from 1 << 31: which ipBlocks an address is in, beside its identity */
};

static __always_inline int is_workload(__u32 id)
{
	return id > ID_MAX_RESERVED && id < ID_LOCAL_BASE;
}

/* Directions of policy, as seen from an endpoint. */
enum direction {
	DIR_INGRESS = 0,
	DIR_EGRESS = 1,
};

/* Directions of a packet within its flow. */
enum flow_dir {
	FLOW_FORWARD = 0,
	FLOW_REPLY = 1,
};

enum program {
	PROG_FROM_POD = 0,
	PROG_FROM_OVERLAY = 1,
	PROG_FROM_HOST = 2,
	PROGRAMS = 4, /* room in the metrics map */
};

/* A packet's addresses and ports, source first. For ICMP echo the identifier
 * is the requester's port; other protocols have no ports. Exactly 16 bytes: it
 * is also the conntrack key. */
struct tuple4 {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad;
	__u16 cluster; /* address space; 0 is the mesh's common one */
};

/* The same for IPv6. Exactly 40 bytes: it is also the conntrack key. */
struct tuple6 {
	struct addr saddr;
	struct addr daddr;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad;
	__u16 cluster;
} __aligned(8);

_Static_assert(sizeof(struct tuple6) == 40, "the IPv6 conntrack key has 40 bytes");

/* One packet: filled by the parser, completed by the decisions, read by the
 * drop event. */
struct packet {
	struct tuple4 t;
	__u32 src_id;
	__u32 dst_id;
	__u32 rule_set;
	__u32 origin;
	__be32 outer; /* outer source of a tunnelled packet */
	__u32 line;
	__u32 len;
	__u16 endpoint; /* whose policy decided */
	__u8 direction; /* enum direction */
	__u8 program;   /* enum program */
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 tos;
	__u8 icmp_error;
	__u8 later;   /* a fragment that has no header behind IP's */
	__u16 mtu;    /* set with "packet too big": what would fit, else 0 */
	__u16 mss;    /* of the path, for a SYN; else 0 */
	__u8 opens;   /* makes a new flow */
	__u8 audited; /* bit n: policy of direction n would deny it, and is audited */
	__u8 v6;      /* addresses are those of struct packet6; t has ports and protocol */
	__u8 pad[3];
};
