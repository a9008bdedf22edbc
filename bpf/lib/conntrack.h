/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Flows and their cached outcome.
 *
 * One entry per flow under a key that is equal for both directions (the lower
 * address first). A flow to a service has a second one, from the tuple before
 * translation. Half-open flows live in a small LRU; the first reply, in TCP the
 * first segment after it that acknowledges it, promotes them to the preallocated
 * hash, which never evicts.
 *
 * Per direction of packets two words say what was decided, each read and
 * written whole:
 *
 *   verdict  63  56 55    48 47     32 31          0
 *           +------+--------+---------+-------------+
 *           |   0  | allow  |  check  | policy epoch|
 *           +------+--------+---------+-------------+
 *   hop      63               32 31                0
 *           +-------------------+------------------+
 *           | node id or HOP_*  | epoch of its data|
 *           +-------------------+------------------+
 *
 * The check is made of the key's hash, the hop's epoch and the identity that
 * came with the packet. Elements are recycled at once after a deletion, and two
 * CPUs may write the two words in any order: a verdict found beside a foreign
 * hop or in a foreign flow does not match. Only "allow" is cached. */
#pragma once
#include "config.h"
#include "drop.h"
#include "parse.h"
#include "types.h"

enum hop {
	HOP_NONE = 0,
	/* 1 … are node ids */
	HOP_WORLD = 0xFFFFFFFD,
	HOP_HOST = 0xFFFFFFFE,
	HOP_LOCAL = 0xFFFFFFFF, /* its epoch is that of the endpoint's rule set */
};

enum ct_flags {
	CT_ORIGIN_HIGH = 1 << 0, /* the higher address sent the first packet */
	CT_SERVICE = 1 << 1,     /* from before translation; nat is the backend */
	CT_NAT = 1 << 2,         /* replies go back through nat, the frontend */
	CT_HAIRPIN = 1 << 3,     /* the originator serves itself */
	CT_WORLD = 1 << 4,       /* the peer is outside the mesh and its tunnels */
	CT_REPLIED = 1 << 5,     /* half-open: TCP that has not said yet that it heard it */
};

enum ct_tcp {
	CT_TCP_FIN_FORWARD = 1 << 0,
	CT_TCP_FIN_REPLY = 1 << 1,
	CT_TCP_RST = 1 << 2,
	CT_TCP_CLOSED = CT_TCP_FIN_FORWARD | CT_TCP_FIN_REPLY,
};

struct ct_entry {
	__u64 verdict[2]; /* by enum flow_dir */
	__u64 hop[2];
	__u64 bytes[2];
	__u32 packets[2];
	__u32 last_seen; /* jiffies */
	__u16 flags;     /* enum ct_flags */
	__u8 tcp;        /* enum ct_tcp */
	__u8 snat_open;  /* snat_port may be in snat4_open still */
	/* 64 bytes: what follows is for new and for translated flows */
	struct addr nat_addr;
	__be16 nat_port;
	__u16 snat_port; /* of the node, in host order, for a flow to the outside */
	__u32 frontend;  /* number of the service's frontend */
	__u32 backend;   /* number of the chosen backend */
	__u32 src_id;    /* identities at the last full judgement, to be shown */
	__u32 dst_id;
	__u32 created; /* jiffies; with CT_SERVICE when its other entry was last seen to */
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 262144);
	__type(key, struct tuple4);
	__type(value, struct ct_entry);
} ct4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct tuple4);
	__type(value, struct ct_entry);
} ct4_open SEC(".maps");

/* What the programs before this build's are told of a new flow, in as many bytes as
 * their entries have (the loader knows how many these may be).
 *
 * While hooks are changed over one by one, a flow's packets of one direction may
 * still meet the programs before. So what these opened or established since the maps
 * were copied is looked for in their maps, ct*_before, and what is opened here is
 * written there too; nothing is established here until all hooks are changed over.
 * Then programs with ct_moving of 0 come, of which nothing of this is part. */
struct ct_told {
	struct ct_entry e;
	__u64 more[7];
};

_Static_assert(sizeof(struct ct_told) == 160, "datapath/loader knows its size");

/* See struct ct_told. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct tuple4);
	__type(value, struct ct_entry);
} ct4_before SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct tuple4);
	__type(value, struct ct_entry);
} ct4_open_before SEC(".maps");

/* A flow as the programs handle it. */
struct flow {
	struct tuple4 key;
	__u32 hash;
	__u8 high; /* the packet comes from the higher address */
	__u8 dir;  /* enum flow_dir */
	__u8 half_open;
	__u8 pad;
};

static __always_inline void flow_key(struct flow *f, const struct tuple4 *t)
{
	__u64 a, b, *words;

	f->high = t->saddr > t->daddr || (t->saddr == t->daddr && t->sport > t->dport);
	f->key = *t;
	if (f->high) {
		f->key.saddr = t->daddr;
		f->key.daddr = t->saddr;
		f->key.sport = t->dport;
		f->key.dport = t->sport;
	}
	words = (__u64 *)&f->key;
	a = words[0] * 0x9E3779B97F4A7C15ULL;
	b = (words[1] ^ (a >> 32)) * 0xC2B2AE3D27D4EB4FULL;
	f->hash = (a ^ b) >> 32;
}

/* Takes an entry over from a map of the programs before. */
static __always_inline struct ct_entry *ct_take(void *map, void *before, const void *key)
{
	struct ct_entry e = {};
	void *was = bpf_map_lookup_elem(before, key);

	if (!was || bpf_probe_read_kernel(&e, ct_moving, was))
		return NULL;
	bpf_map_update_elem(map, key, &e, BPF_NOEXIST);
	return bpf_map_lookup_elem(map, key);
}

/* The programs before establish flows meanwhile: three looks, as in ct_find. */
static __noinline struct ct_entry *ct_taken(struct flow *f)
{
	struct ct_entry *e = ct_take(&ct4, &ct4_before, &f->key);

	f->half_open = !e;
	if (!e)
		e = ct_take(&ct4_open, &ct4_open_before, &f->key);
	if (!e) {
		e = ct_take(&ct4, &ct4_before, &f->key);
		f->half_open = !e;
	}
	return e;
}

static __noinline int ct_tell(const struct tuple4 *key, const struct ct_entry *e)
{
	struct ct_told told = {.e = *e};

	return bpf_map_update_elem(&ct4_open_before, key, &told, BPF_ANY);
}

/* The flow's entry, in whichever map. Another CPU may move it from the one to the
 * other between our two looks; so no flow is new before the third. */
static __always_inline struct ct_entry *ct_find(struct flow *f)
{
	struct ct_entry *e = bpf_map_lookup_elem(&ct4, &f->key);

	f->half_open = 0;
	if (!e) {
		e = bpf_map_lookup_elem(&ct4_open, &f->key);
		f->half_open = 1;
	}
	if (unlikely(!e)) {
		e = bpf_map_lookup_elem(&ct4, &f->key);
		f->half_open = !e;
	}
	if (ct_moving && !e)
		e = ct_taken(f);
	if (e)
		f->dir = f->high == !!(e->flags & CT_ORIGIN_HIGH) ? FLOW_FORWARD : FLOW_REPLY;
	return e;
}

static __always_inline void ct_delete(const struct flow *f)
{
	bpf_map_delete_elem(&ct4, &f->key);
	bpf_map_delete_elem(&ct4_open, &f->key);
	if (ct_moving) {
		bpf_map_delete_elem(&ct4_before, &f->key);
		bpf_map_delete_elem(&ct4_open_before, &f->key);
	}
}

/* Whether the packet opens a connection where an old one just ended. */
static __always_inline int ct_reopened(const struct ct_entry *e, const struct packet *p)
{
	__u8 closed = e->flags & CT_SERVICE ? CT_TCP_FIN_FORWARD : CT_TCP_CLOSED;

	return p->t.proto == IPPROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN &&
	       (e->tcp & CT_TCP_RST || (e->tcp & closed) == closed);
}

/* Notes that a packet ends its direction of the connection, or all of it. */
static __always_inline void ct_end(struct ct_entry *e, const struct packet *p, __u8 dir)
{
	if (p->tcp_flags & TCP_RST)
		e->tcp |= CT_TCP_RST;
	else if (p->tcp_flags & TCP_FIN)
		e->tcp |= dir == FLOW_REPLY ? CT_TCP_FIN_REPLY : CT_TCP_FIN_FORWARD;
}

static __always_inline void ct_touch(struct ct_entry *e, const struct packet *p, __u8 dir)
{
	__u32 now = bpf_jiffies64();

	dir &= 1;
	if (e->last_seen != now)
		e->last_seen = now;
	e->packets[dir]++;
	e->bytes[dir] += p->len;
	if (p->tcp_flags & (TCP_FIN | TCP_RST))
		ct_end(e, p, dir);
}

static __always_inline void ct_init(struct ct_entry *e, const struct packet *p,
                                    const struct flow *f, __u16 flags)
{
	__builtin_memset(e, 0, sizeof(*e));
	e->flags = flags | (f->high ? CT_ORIGIN_HIGH : 0);
	e->src_id = p->src_id;
	e->dst_id = p->dst_id;
	e->created = bpf_jiffies64();
	e->last_seen = e->created;
}

/* A full LRU evicts a half-open flow, never an established one. */
static __always_inline int ct_create(struct packet *p, const struct flow *f, struct ct_entry *e)
{
	p->opens = 1;
	e->packets[FLOW_FORWARD] = 1;
	e->bytes[FLOW_FORWARD] = p->len;
	if (ct_moving)
		ct_tell(&f->key, e);
	return bpf_map_update_elem(&ct4_open, &f->key, e, BPF_ANY) ? DROP(p, DROP_CONNTRACK_FULL)
	                                                           : 0;
}

/* Moves a half-open flow to the established ones. A busy bucket (kernels before
 * 6.15 report it during a dump) leaves it where it is until the next packet. */
static __always_inline int ct_promote(struct packet *p, struct flow *f, struct ct_entry **e)
{
	long err;

	(*e)->flags |= CT_REPLIED;
	if (ct_moving)
		return 0; /* where the programs before find it */
	err = bpf_map_update_elem(&ct4, &f->key, *e, BPF_NOEXIST);
	if (err == -EBUSY)
		return 0;
	if (err && err != -EEXIST)
		return DROP(p, DROP_CONNTRACK_FULL);
	bpf_map_delete_elem(&ct4_open, &f->key);
	*e = bpf_map_lookup_elem(&ct4, &f->key);
	f->half_open = 0;
	return *e ? 0 : DROP(p, DROP_CONNTRACK_FULL);
}

/* Whether the packet is an echo reply to no request: policy is asked about requests
 * only. Later fragments are told by the ports; those of the identifier 0 are judged as
 * a request's. */
static __always_inline int is_unasked(const struct packet *p, const struct flow *f)
{
	if (likely(p->t.proto != IPPROTO_ICMP && p->t.proto != IPPROTO_ICMPV6))
		return 0;
	if (f->dir == FLOW_REPLY)
		return 0;
	if (!p->t.sport && p->t.dport)
		return 1;
	return !p->later && p->icmp_type == (p->v6 ? ICMP6_ECHOREPLY : ICMP_ECHOREPLY);
}

/* Whether a half-open flow may take a step with a packet in this direction. */
static __always_inline int ct_steps(const struct flow *f, const struct ct_entry *e)
{
	return f->half_open && (f->dir == FLOW_REPLY || e->flags & CT_REPLIED);
}

/* Whether a packet of who opened the flow shows that the answer has reached him.
 * Whoever only sends SYNs, from wherever, gets answers and takes no room for good. */
static __always_inline int ct_confirms(const struct packet *p)
{
	return p->t.proto != IPPROTO_TCP ||
	       (p->tcp_flags & (TCP_SYN | TCP_RST | TCP_ACK)) == TCP_ACK;
}

/* What a packet makes of a half-open flow. */
static __always_inline int ct_advance(struct packet *p, struct flow *f, struct ct_entry **e)
{
	if (f->dir == FLOW_REPLY && p->t.proto == IPPROTO_TCP) {
		(*e)->flags |= CT_REPLIED;
		return 0;
	}
	return ct_steps(f, *e) && ct_confirms(p) ? ct_promote(p, f, e) : 0;
}

static __always_inline __u64 verdict_word(const struct flow *f, __u32 policy_epoch, __u32 hop_epoch,
                                          __u32 salt)
{
	__u32 x = f->hash ^ (hop_epoch * 0x85EBCA6B) ^ (salt * 0xC2B2AE35);

	x ^= x >> 16;
	return 1ULL << 48 | (__u64)(x & 0xFFFF) << 32 | policy_epoch;
}

static __always_inline __u64 hop_word(__u32 hop, __u32 epoch)
{
	return (__u64)hop << 32 | epoch;
}

/* Stores an outcome: it was judged with epochs read before the lookups. */
static __always_inline void ct_cache(struct ct_entry *e, __u8 dir, __u64 verdict, __u64 hop)
{
	dir &= 1;
	barrier();
	WRITE_ONCE(e->hop[dir], hop);
	WRITE_ONCE(e->verdict[dir], verdict);
}
