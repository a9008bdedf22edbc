/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Counters and events, and the one exit of every program. */
#pragma once
#include "config.h"
#include "drop.h"
#include "packet6.h"
#include "scratch.h"
#include "types.h"

struct metric {
	__u64 packets;
	__u64 bytes;
};

/* Index: reason, direction, program (2 bits). */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DROP_REASONS * 2 * PROGRAMS);
	__type(key, __u32);
	__type(value, struct metric);
} metrics SEC(".maps");

enum event_type {
	EVENT_DROP = 1,
	EVENT_VERDICT = 2,
	EVENT_TRACE = 3,
};

struct event {
	__u64 suppressed;
	struct addr source;
	struct addr destination;
	struct addr outer;
	__u32 source_id;
	__u32 dest_id;
	__u32 rule_set;
	__u32 origin;
	__u32 length;
	__u32 line;
	__be16 sport;
	__be16 dport;
	__u16 endpoint;
	__u8 type; /* enum event_type */
	__u8 reason;
	__u8 program;
	__u8 direction;
	__u8 protocol;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 pad[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} events SEC(".maps");

/* Token bucket per (endpoint, reason); counting in metrics stays exact. */
struct bucket_key {
	__u16 endpoint;
	__u8 reason;
	__u8 program;
};

struct bucket {
	__u64 last; /* ns */
	__u32 tokens;
	__u32 suppressed;
};

enum {
	EVENT_RATE = 100, /* per second */
	EVENT_BURST = 200,
	NSEC_PER_TOKEN = NSEC_PER_SEC / EVENT_RATE,
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct bucket_key);
	__type(value, struct bucket);
} event_buckets SEC(".maps");

/* What a packet's audited policies would have dropped it by, until finish: by
 * direction. Not in struct packet, of which most have no need. */
struct would_deny {
	__u32 rule_set;
	__u32 origin;
	__u16 endpoint;
	__u16 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct would_deny);
} would_deny SEC(".maps");

static __always_inline void note_audited(__u32 dir, __u32 rule_set, __u32 origin, __u16 endpoint)
{
	struct would_deny *w = bpf_map_lookup_elem(&would_deny, &dir);

	if (!w)
		return;
	w->rule_set = rule_set;
	w->origin = origin;
	w->endpoint = endpoint;
}

/* What somebody listens to beside drops; the agent sets it. */
struct watch {
	__u32 verdicts;
	__u32 traces;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct watch);
} watched SEC(".maps");

static __always_inline struct watch *watch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&watched, &zero);
}

/* Of how many packets that a program passes one is traced, on each CPU. */
enum {
	TRACE_SAMPLE = 16, /* a power of two */
};

/* Counts the packet, and returns how many there were. */
static __always_inline __u64 count(const struct packet *p, __u32 reason)
{
	__u32 i = (reason * 2 + (p->direction & 1)) * PROGRAMS + (p->program & (PROGRAMS - 1));
	struct metric *m = bpf_map_lookup_elem(&metrics, &i);

	if (!m)
		return 0;
	m->bytes += p->len;
	return ++m->packets;
}

/* Takes a token of a reason, or of verdicts and traces, which have numbers beyond
 * those. Returns the number of events suppressed before this one, or
 * -1 when this one is suppressed too. */
static __always_inline long long take_token(const struct packet *p, __u32 reason)
{
	struct bucket_key key = {.endpoint = p->endpoint, .reason = reason, .program = p->program};
	struct bucket *b = bpf_map_lookup_elem(&event_buckets, &key);
	__u64 now = bpf_ktime_get_ns();
	__u64 earned;
	long long suppressed;

	if (!b) {
		struct bucket fresh = {.last = now, .tokens = EVENT_BURST - 1};

		bpf_map_update_elem(&event_buckets, &key, &fresh, BPF_ANY);
		return 0;
	}
	earned = (now - b->last) / NSEC_PER_TOKEN;
	if (earned) {
		__u64 tokens = b->tokens + earned;

		b->tokens = tokens > EVENT_BURST ? EVENT_BURST : tokens;
		b->last += earned * NSEC_PER_TOKEN;
	}
	if (!b->tokens) {
		b->suppressed++;
		return -1;
	}
	b->tokens--;
	suppressed = b->suppressed;
	b->suppressed = 0;
	return suppressed;
}

static __noinline void fill_event(struct event *e, const struct packet *p)
{
	struct packet6 *x;

	if (!e || !p)
		return;
	x = p->v6 ? packet6_in_hand() : NULL;
	e->source = x ? x->t.saddr : addr4(p->t.saddr);
	e->destination = x ? x->t.daddr : addr4(p->t.daddr);
	if (p->outer)
		e->outer = addr4(p->outer);
	e->source_id = p->src_id;
	e->dest_id = p->dst_id;
	e->rule_set = p->rule_set;
	e->origin = p->origin;
	e->length = p->len;
	e->line = p->line;
	e->sport = p->t.sport;
	e->dport = p->t.dport;
	e->endpoint = p->endpoint;
	e->program = p->program;
	e->direction = p->direction;
	e->protocol = p->t.proto;
	e->tcp_flags = p->tcp_flags;
	e->icmp_type = p->icmp_type;
	e->icmp_code = p->icmp_code;
}

/* Sends an event of the packet in hand. Global like the others below, so that the
 * verifier walks it once and not again at every call. */
__attribute__((noinline)) int emit(__u32 reason, __u32 type)
{
	struct packet *p = packet_in_hand();
	struct event *e;
	long long suppressed;

	if (!p)
		return 0;
	suppressed = take_token(p, reason ? reason : DROP_REASONS + type);
	if (suppressed < 0)
		return 0;
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e)
		return 0;
	__builtin_memset(e, 0, sizeof(*e));
	e->suppressed = suppressed;
	e->type = type;
	e->reason = reason;
	fill_event(e, p);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/* Tells of a packet that passes, if somebody wants to hear it. */
__attribute__((noinline)) int tell(__u64 packets)
{
	struct packet *p = packet_in_hand();
	struct watch *w = watch();

	if (!p || !w)
		return 0;
	if (p->opens && !p->audited && w->verdicts) /* audits tell of themselves */
		emit(DROP_NONE, EVENT_VERDICT);
	if (!(packets % TRACE_SAMPLE) && w->traces)
		emit(DROP_NONE, EVENT_TRACE);
	return 0;
}

/* Counts and reports what policy would have dropped if it were not audited. The
 * packet's own words are overwritten. */
__attribute__((noinline)) int report_audited(void)
{
	struct packet *p = packet_in_hand();
	__u32 dir;

	if (!p)
		return 0;
	for (dir = DIR_INGRESS; dir <= DIR_EGRESS; dir++) {
		__u32 i = dir;
		struct would_deny *w = bpf_map_lookup_elem(&would_deny, &i);

		if (!w || !(p->audited >> dir & 1))
			continue;
		p->direction = dir;
		p->rule_set = w->rule_set;
		p->origin = w->origin;
		p->endpoint = w->endpoint;
		count(p, AUDIT_POLICY_DENIED);
		emit(AUDIT_POLICY_DENIED, EVENT_VERDICT);
	}
	return 0;
}

/* The exit: a negative verdict is a drop with a reason. What hosts tell their links all
 * the time is counted and not reported. */
static __always_inline int finish(struct packet *p, int verdict)
{
	__u32 reason = verdict < 0 ? -verdict : DROP_NONE;
	__u64 packets;

	if (reason >= DROP_REASONS)
		reason = DROP_REWRITE_FAILED;
	packets = count(p, reason);
	if (unlikely(reason != DROP_NONE)) {
		if (reason != DROP_LINK_TALK)
			emit(reason, EVENT_DROP);
	} else if (unlikely(p->opens || !(packets % TRACE_SAMPLE))) {
		tell(packets);
	}
	if (unlikely(p->audited))
		report_audited();
	return reason == DROP_NONE ? verdict : TC_ACT_SHOT;
}
