/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Rule sets: what an endpoint may send and receive. */
#pragma once
#include "drop.h"
#include "endpoint.h"
#include "event.h"
#include "ipcache.h"
#include "ipcache6.h"

/* One word per rule set, written and read whole:
 *
 *   63      56 55       48 47        40 39     32 31            0
 *  +----------+-----------+------------+---------+---------------+
 *  |  sizes   | egress    | ingress    |  flags  |     epoch     |
 *  | of ranges| levels    | levels     |         |               |
 *  +----------+-----------+------------+---------+---------------+
 *
 * Epochs of different rule sets are never equal (the agent takes them from one
 * counter), so moving an endpoint to another rule set is seen as well. */
enum {
	RULES_FLAGS_SHIFT = 32,
	RULES_INGRESS_SHIFT = 40,
	RULES_EGRESS_SHIFT = 48,
	RULES_RANGES_SHIFT = 56, /* bit n: there are ranges of 4 << 2n ports */
};

enum rules_flags {
	RULES_VALID = 1 << 0,        /* the slot is in use */
	RULES_DENY_INGRESS = 1 << 1, /* default deny */
	RULES_DENY_EGRESS = 1 << 2,
	RULES_BLOCKS_INGRESS = 1 << 3, /* has entries for ipBlocks */
	RULES_BLOCKS_EGRESS = 1 << 4,
	RULES_AUDIT = 1 << 5, /* what would be denied is reported and passes */
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
	__be16 port;    /* 0: any; of a range its first, a multiple of its size */
	__u8 proto;     /* 0: any */
	__u8 direction; /* and, above bit 0, how many low bits of the port are left out */
};

/* For ICMP the port is the type with this bit. The only flows are echos, which
 * their request opened (see is_unasked). */
enum {
	POLICY_ICMP = 1 << 8,
	POLICY_ECHO = POLICY_ICMP | ICMP_ECHO,
	POLICY_ECHO6 = POLICY_ICMP | ICMP6_ECHO,
};

/* The protocol in the key of the entry that counts what a default denied; parsers
 * drop a packet that has it. */
enum {
	POLICY_DEFAULT = IPPROTO_RESERVED,
};

struct policy_entry {
	__u32 origin;
	__u8 deny;
	__u8 pad[3];
	__u64 hits; /* judgements that it decided; the agent never writes it back */
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
	LEVELS_OF_IDENTITY = 3, /* those of any identity follow in the same order */
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

/* What policy_first answers: the origin in the high half, and this. A global
 * function takes and returns only numbers. */
enum policy_answer {
	POLICY_DENY = 1 << 0,
	POLICY_AUDITED = 1 << 1, /* it would deny, and is only audited */
};

struct policy_question {
	__u32 rule_set;
	__be16 port;
	__u8 proto;
	__u8 dir;
	__u8 sizes; /* of the rule set's ranges */
	__u8 v6;    /* the peer's address is that of struct packet6 */
};

enum {
	RANGE_SIZES = 7, /* of 2, 4 … 14 bits */
};

/* The entry of the narrowest range that holds the port. */
static __always_inline struct policy_entry *policy_range(const struct policy_question *q,
                                                         __u32 identity)
{
	__u16 port = bpf_ntohs(q->port);
	struct policy_entry *e = NULL;
	__u32 i;

	for (i = 0; i < RANGE_SIZES && !e; i++) {
		__u32 wild = 2 * i + 2;

		if (q->sizes >> i & 1)
			e = policy_probe(q->rule_set, q->dir | wild << 1, identity, q->proto,
			                 bpf_htons(port >> wild << wild));
	}
	return e;
}

/* levels begins with those of an identity. */
static __always_inline struct policy_entry *policy_row(const struct policy_question *q, __u8 levels,
                                                       __u32 identity)
{
	struct policy_entry *e = NULL;

	if (levels & LEVEL_IDENTITY_PROTO_PORT)
		e = policy_probe(q->rule_set, q->dir, identity, q->proto, q->port);
	if (!e && unlikely(q->sizes))
		e = policy_range(q, identity);
	if (!e && levels & LEVEL_IDENTITY_PROTO)
		e = policy_probe(q->rule_set, q->dir, identity, q->proto, 0);
	if (!e && levels & LEVEL_IDENTITY)
		e = policy_probe(q->rule_set, q->dir, identity, 0, 0);
	return e;
}

/* The entry that decides: the first that matches the peer, else the first for any
 * identity. The ipBlocks that addr is in are asked as well: a deny wins, then an
 * allow. */
static __always_inline struct policy_entry *
policy_find(const struct policy_question *q, __u8 levels, __u32 peer, __u32 addr, int blocks)
{
	struct policy_entry *e = policy_row(q, levels, peer), *other = NULL;
	__u32 block;

	if (!e)
		e = policy_row(q, levels >> LEVELS_OF_IDENTITY, 0);
	if (!blocks || (e && e->deny))
		return e;
	block = q->v6 ? block_identity6() : block_identity4(addr);
	if (block)
		other = policy_row(q, levels, block);
	return other && (!e || other->deny) ? other : e;
}

/* The port that policy asks about, in network order. */
static __always_inline __be16 policy_port(__u8 proto, __be16 port)
{
	if (proto == IPPROTO_ICMP)
		return bpf_htons(POLICY_ECHO);
	return proto == IPPROTO_ICMPV6 ? bpf_htons(POLICY_ECHO6) : port;
}

/* Bits of policy_first's "what" above the port and the protocol. */
enum {
	WHAT_DIRECTION_SHIFT = 24,
	WHAT_V6_SHIFT = 25,
};

/* What a rule set says of a packet. who is the rule set, above it the endpoint;
 * what is the port, the protocol above it, and above that WHAT_*. Global,
 * so that the verifier walks its probes once and not again at every call. */
__attribute__((noinline)) __u64 policy_first(__u64 rules, __u64 who, __u32 peer, __u32 addr,
                                             __u32 what)
{
	struct policy_question q = {
	    .rule_set = who,
	    .port = policy_port(what >> 16, what),
	    .proto = what >> 16,
	    .dir = what >> WHAT_DIRECTION_SHIFT & 1,
	    .sizes = rules >> RULES_RANGES_SHIFT,
	    .v6 = what >> WHAT_V6_SHIFT & 1,
	};
	__u8 egress = q.dir == DIR_EGRESS;
	__u8 flags = rules >> RULES_FLAGS_SHIFT;
	__u8 deny = flags & (egress ? RULES_DENY_EGRESS : RULES_DENY_INGRESS);
	struct policy_entry *e =
	    policy_find(&q, rules >> (egress ? RULES_EGRESS_SHIFT : RULES_INGRESS_SHIFT), peer,
	                addr, flags & (egress ? RULES_BLOCKS_EGRESS : RULES_BLOCKS_INGRESS));
	__u32 origin = 0;

	if (e) {
		origin = e->origin;
		deny = e->deny;
	} else if (deny) {
		e = policy_probe(q.rule_set, q.dir, 0, POLICY_DEFAULT, 0);
	}
	if (e)
		__sync_fetch_and_add(&e->hits, 1);
	if (deny && flags & RULES_AUDIT) {
		note_audited(q.dir, q.rule_set, origin, who >> 32);
		return POLICY_AUDITED;
	}
	return (__u64)origin << 32 | (deny ? POLICY_DENY : 0);
}

/* Whether this node knows whom policy is asked about: of a workload it knows the
 * labels. An allow of everybody would else let in, or out to, whom a deny means. */
static __always_inline int is_known(__u32 peer)
{
	return peer != ID_UNKNOWN &&
	       (!is_workload(peer) || bpf_map_lookup_elem(&identities, &peer));
}

/* Whether policy has to be asked if ep accepts a flow: dir as seen from ep. A negative
 * answer is why it does not. */
static __always_inline int policy_needed(struct packet *p, const struct endpoint *ep, __u64 rules,
                                         __u8 dir, __u32 peer)
{
	__u8 flags = rules >> RULES_FLAGS_SHIFT;
	__u8 levels = rules >> (dir == DIR_EGRESS ? RULES_EGRESS_SHIFT : RULES_INGRESS_SHIFT);
	int deny = flags & (dir == DIR_EGRESS ? RULES_DENY_EGRESS : RULES_DENY_INGRESS);

	if (dir == DIR_INGRESS && peer == ID_HOST)
		return 0; /* probes: the node always reaches its own endpoints */
	if (flags & RULES_VALID && !deny && !levels)
		return 0;
	p->direction = dir;
	p->endpoint = ep->id;
	p->rule_set = ep->rule_set;
	if (!(flags & RULES_VALID))
		return DROP(p, DROP_UNKNOWN_RULE_SET);
	return is_known(peer) ? 1 : DROP(p, DROP_IDENTITY_UNKNOWN);
}

static __always_inline __u64 policy_who(const struct endpoint *ep)
{
	return (__u64)ep->id << 32 | ep->rule_set;
}

static __always_inline __u32 policy_what(__u8 dir, __u8 proto, __be16 port, __u32 v6)
{
	return v6 << WHAT_V6_SHIFT | (__u32)dir << WHAT_DIRECTION_SHIFT | (__u32)proto << 16 | port;
}

/* What policy_first has answered, as a verdict. */
static __always_inline int policy_answered(struct packet *p, __u8 dir, __u64 answer)
{
	p->origin = answer >> 32;
	p->audited |= !!(answer & POLICY_AUDITED) << (dir & 1);
	return answer & POLICY_DENY ? DROP(p, DROP_POLICY_DENIED) : 0;
}

/* Whether ep accepts a flow: dir as seen from ep, port the responder's, addr the
 * peer's IPv4 address. v6 is a constant. */
static __always_inline int policy_ask(struct packet *p, const struct endpoint *ep, __u64 rules,
                                      __u8 dir, __u32 peer, __be32 addr, __be16 port, __u32 v6)
{
	int ret = policy_needed(p, ep, rules, dir, peer);

	if (ret <= 0)
		return ret;
	return policy_answered(p, dir,
	                       policy_first(rules, policy_who(ep), peer, addr,
	                                    policy_what(dir, p->t.proto, port, v6)));
}

static __always_inline int policy_verdict(struct packet *p, const struct endpoint *ep, __u64 rules,
                                          __u8 dir, __u32 peer, __be32 addr, __be16 port)
{
	return policy_ask(p, ep, rules, dir, peer, addr, port, 0);
}

/* The same for IPv6. */
static __always_inline int policy_verdict6(struct packet *p, struct packet6 *x,
                                           const struct endpoint *ep, __u64 rules, __u8 dir,
                                           __u32 peer, const struct addr *addr, __be16 port)
{
	x->peer = *addr;
	return policy_ask(p, ep, rules, dir, peer, 0, port, 1);
}
