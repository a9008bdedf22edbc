/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Rule sets: what an endpoint may send and receive. */
#pragma once
#include "drop.h"
#include "endpoint.h"

/* One word per rule set, written and read whole:
 *
 *   63      56 55       48 47        40 39     32 31            0
 *  +----------+-----------+------------+---------+---------------+
 *  |  unused  | egress    | ingress    |  flags  |     epoch     |
 *  |          | levels    | levels     |         |               |
 *  +----------+-----------+------------+---------+---------------+
 *
 * Epochs of different rule sets are never equal (the agent takes them from one
 * counter), so moving an endpoint to another rule set is seen as well. */
enum {
	RULES_FLAGS_SHIFT = 32,
	RULES_INGRESS_SHIFT = 40,
	RULES_EGRESS_SHIFT = 48,
};

enum rules_flags {
	RULES_VALID = 1 << 0,        /* the slot is in use */
	RULES_DENY_INGRESS = 1 << 1, /* default deny */
	RULES_DENY_EGRESS = 1 << 2,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __u64);
} rule_sets SEC(".maps");

struct policy_key {
	__u32 rule_set;
	__u32 identity; /* 0: any */
	__be16 port;    /* 0: any */
	__u8 proto;     /* 0: any */
	__u8 direction;
};

struct policy_entry {
	__u32 origin;
	__u8 deny;
	__u8 pad[3];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct policy_key);
	__type(value, struct policy_entry);
} policy SEC(".maps");

/* Levels in the order of probes; bits of the masks in the rule set's word. */
enum policy_level {
	LEVEL_IDENTITY_PROTO_PORT = 1 << 0,
	LEVEL_IDENTITY_PROTO = 1 << 1,
	LEVEL_IDENTITY = 1 << 2,
	LEVEL_PROTO_PORT = 1 << 3,
	LEVEL_PROTO = 1 << 4,
	LEVEL_ANY = 1 << 5,
};

static __always_inline __u64 rules_word(__u32 rule_set)
{
	__u64 *word = bpf_map_lookup_elem(&rule_sets, &rule_set);
	__u64 rules = word ? READ_ONCE(*word) : 0;

	barrier();
	return rules;
}

static __always_inline struct policy_entry *policy_probe(__u32 rule_set, __u8 dir, __u32 identity,
                                                         __u8 proto, __be16 port)
{
	struct policy_key key = {
	    .rule_set = rule_set,
	    .identity = identity,
	    .port = port,
	    .proto = proto,
	    .direction = dir,
	};

	return bpf_map_lookup_elem(&policy, &key);
}

/* What policy_first is asked and answers, as words: a global function takes and
 * returns only numbers.
 *
 *   what    63      48 47    40 39    32 31    24 23    16 15          0
 *          +----------+--------+--------+--------+--------+-------------+
 *          |  unused  | levels |  dir   | proto  | unused |    port     |
 *          +----------+--------+--------+--------+--------+-------------+
 *   answer  63                       32 31                            0
 *          +---------------------------+-------------------------------+
 *          |          origin           |       enum policy_found       |
 *          +---------------------------+-------------------------------+ */
enum policy_found {
	POLICY_FOUND = 1 << 0,
	POLICY_DENY = 1 << 1,
};

static __always_inline __u64 policy_what(__u8 levels, __u8 dir, __u8 proto, __be16 port)
{
	return (__u64)levels << 40 | (__u64)dir << 32 | (__u64)proto << 24 | port;
}

/* The first entry that matches. Global, so that the verifier walks its six probes
 * once and not again at every call. */
__attribute__((noinline)) __u64 policy_first(__u32 rule_set, __u32 peer, __u64 what)
{
	__u8 levels = what >> 40, dir = (what >> 32) & 1, proto = what >> 24;
	__be16 port = what;
	struct policy_entry *e = NULL;

	if (levels & LEVEL_IDENTITY_PROTO_PORT)
		e = policy_probe(rule_set, dir, peer, proto, port);
	if (!e && levels & LEVEL_IDENTITY_PROTO)
		e = policy_probe(rule_set, dir, peer, proto, 0);
	if (!e && levels & LEVEL_IDENTITY)
		e = policy_probe(rule_set, dir, peer, 0, 0);
	if (!e && levels & LEVEL_PROTO_PORT)
		e = policy_probe(rule_set, dir, 0, proto, port);
	if (!e && levels & LEVEL_PROTO)
		e = policy_probe(rule_set, dir, 0, proto, 0);
	if (!e && levels & LEVEL_ANY)
		e = policy_probe(rule_set, dir, 0, 0, 0);
	if (!e)
		return 0;
	return (__u64)e->origin << 32 | (e->deny ? POLICY_DENY : 0) | POLICY_FOUND;
}

/* Whether ep accepts a flow: dir as seen from ep, port the responder's. */
static __always_inline int policy_verdict(struct packet *p, const struct endpoint *ep, __u64 rules,
                                          __u8 dir, __u32 peer, __be16 port)
{
	__u8 flags = rules >> RULES_FLAGS_SHIFT;
	__u8 levels = rules >> (dir == DIR_EGRESS ? RULES_EGRESS_SHIFT : RULES_INGRESS_SHIFT);
	int deny = flags & (dir == DIR_EGRESS ? RULES_DENY_EGRESS : RULES_DENY_INGRESS);
	__u64 found;

	if (dir == DIR_INGRESS && peer == ID_HOST)
		return 0; /* probes: the node always reaches its own endpoints */
	if (flags & RULES_VALID && !deny && !levels)
		return 0;
	p->direction = dir;
	p->endpoint = ep->id;
	p->rule_set = ep->rule_set;
	if (!(flags & RULES_VALID))
		return DROP(p, DROP_UNKNOWN_RULE_SET);
	if (peer == ID_UNKNOWN)
		return DROP(p, DROP_IDENTITY_UNKNOWN);
	found = policy_first(ep->rule_set, peer, policy_what(levels, dir, p->t.proto, port));
	p->origin = found >> 32;
	if (found & POLICY_FOUND)
		deny = found & POLICY_DENY;
	return deny ? DROP(p, DROP_POLICY_DENIED) : 0;
}
