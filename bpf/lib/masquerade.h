/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Masquerade: what pods send to the outside through the underlay has the node's
 * address and a port of its own there, and its answers find back. */
#pragma once
#include "config.h"
#include "conntrack.h"
#include "deliver.h"
#include "icmp.h"
#include "nat.h"

struct snat_key {
	__be32 remote;
	__be16 remote_port;
	__be16 port; /* of the node; for ICMP the identifier */
	__u8 proto;
	__u8 pad[3];
};

struct snat_entry {
	__be32 addr; /* of the pod */
	__be16 port;
	__u16 pad;
	__u32 created; /* jiffies */
};

/* Ports of established flows. The agent deletes those whose flow is gone. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__type(key, struct snat_key);
	__type(value, struct snat_entry);
} snat4 SEC(".maps");

/* Ports of half-open flows, as ct4_open has them: a full one forgets the oldest. A
 * flow moves from here to snat4 when it is established, and never back. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct snat_key);
	__type(value, struct snat_entry);
} snat4_open SEC(".maps");

enum {
	SNAT_TRIES = 32,
	SNAT_STEP = 7919,    /* a prime: tries spread over the range */
	SNAT_KEPT = 1 << 16, /* beside a port: of an established flow, and in snat4 */
	FIB_NO_NEIGHBOUR = 7,
	FIB_FRAG_NEEDED = 8,
};

/* struct bpf_fib_lookup, as far as it is used. */
struct fib_question {
	__u8 family;
	__u8 proto;
	__be16 sport;
	__be16 dport;
	__u16 tot_len; /* 0: the packet's; the answer is an MTU */
	__u32 ifindex;
	__u8 tos;
	__u8 pad[3];
	__be32 saddr[4]; /* of IPv4 the first */
	__be32 daddr[4];
	__u32 vlan;
	__u8 macs[2 * ETH_ALEN];
};

_Static_assert(sizeof(struct fib_question) == 64, "struct bpf_fib_lookup has 64 bytes");

enum route_out {
	OUT_ELSEWHERE = 0, /* the stack's matter */
	OUT_UNDERLAY = 1,
};

static __always_inline int way_out(struct __sk_buff *skb, struct fib_question *q)
{
	long ret = bpf_fib_lookup(skb, q, sizeof(*q), 0);

	/* without a neighbour yet, redirect_neigh asks for it; what does not fit is for
	 * fits_way to say */
	if ((ret == 0 || ret == FIB_NO_NEIGHBOUR || ret == FIB_FRAG_NEEDED) &&
	    q->ifindex == underlay_ifindex)
		return OUT_UNDERLAY;
	return OUT_ELSEWHERE;
}

/* Whether so many bytes from the IP header on, which a program's redirect does not
 * look at, fit the underlay device. The MTU that the kernel keeps for a destination
 * is not asked for: whoever can send the node an ICMP error sets it. */
static __always_inline int fits_way(struct __sk_buff *skb, struct packet *p, __u32 len)
{
	__u32 mtu = 0;

	if (bpf_check_mtu(skb, underlay_ifindex, &mtu, 0, 0) < 0 && !mtu)
		return DROP(p, DROP_REWRITE_FAILED);
	if (likely(len <= mtu))
		return OUT_UNDERLAY;
	p->mtu = mtu;
	return DROP(p, DROP_PACKET_TOO_BIG);
}

/* Whether the node routes the packet out of the underlay. */
static __always_inline int route_out(struct __sk_buff *skb, __be32 saddr, __be32 daddr)
{
	struct fib_question q = {
	    .family = 2 /* AF_INET */, .ifindex = skb->ifindex, .saddr = {saddr}, .daddr = {daddr}};

	return way_out(skb, &q);
}

/* Whether a packet that may not fit leaves: OUT_UNDERLAY or a negative drop reason, also
 * if it may be cut (docs/adr/0009 says why). Global: see nat4_write. */
__attribute__((noinline)) int snat_fits(struct __sk_buff *skb)
{
	struct packet *p = packet_in_hand();
	__u32 len = skb->len - ETH_HLEN;

	if (!p)
		return -DROP_MALFORMED;
	if (skb->gso_size)
		len = IP_HLEN + l4_hlen(skb, p) + skb->gso_size;
	return fits_way(skb, p, len);
}

/* Whether a packet of a flow that has a port leaves: see snat_fits. Asked before
 * translation, as can_reach is. */
static __always_inline int snat_way(struct __sk_buff *skb, struct packet *p)
{
	int ret;

	if (likely(skb->len <= ETH_HLEN + SURE_MTU))
		return OUT_UNDERLAY;
	ret = snat_fits(skb);
	if (ret >= 0)
		return ret;
	p->line = __LINE__;
	return ret < -DROP_REASONS ? -DROP_REWRITE_FAILED : ret;
}

/* Whether a port is this flow's. */
static __always_inline int snat_is(const struct snat_entry *s, const struct snat_entry *e)
{
	return s && s->addr == e->addr && s->port == e->port;
}

/* Takes the port in key for a half-open flow. Whoever has its place in snat4_open
 * and then finds none in snat4 is alone with it, but for one case: the flow that had
 * it before, and lost it to this one or to the LRU, is being established at this moment
 * (snat_promote, after its last look at snat4_open). That one keeps the port, since
 * it has connections to lose; this one finds that out, and gets another port, with
 * its next packet (snat_keep). */
static __always_inline int snat_take(const struct snat_key *key, const struct snat_entry *e,
                                     __u64 how)
{
	if (bpf_map_update_elem(&snat4_open, key, e, how))
		return 0;
	if (!bpf_map_lookup_elem(&snat4, key))
		return 1;
	bpf_map_delete_elem(&snat4_open, key);
	return 0;
}

/* Takes a port for a half-open flow and writes it into key; where none is found
 * free, that of the half-open flow that is there for longest. Returns it, or a
 * negative drop reason. */
static __always_inline int snat_pick(struct snat_key *key, const struct snat_entry *e)
{
	__u32 pick = bpf_get_prandom_u32(), oldest = 0, since = 0, i;
	struct snat_entry *other;

	for (i = 0; i < SNAT_TRIES; i++) {
		__u32 port = snat_first + (pick + i * SNAT_STEP) % snat_ports;

		key->port = bpf_htons(port);
		if (bpf_map_lookup_elem(&snat4, key))
			continue;
		if (snat_take(key, e, BPF_NOEXIST))
			return port & 0xFFFF;
		other = bpf_map_lookup_elem(&snat4_open, key);
		if (other && (!oldest || (__s32)(other->created - since) < 0)) {
			oldest = port;
			since = other->created;
		}
	}
	key->port = bpf_htons(oldest);
	return oldest && snat_take(key, e, BPF_ANY) ? oldest & 0xFFFF : -DROP_NO_SNAT_PORT;
}

/* Takes a port for a new flow of a pod. Returns it, 0 when the flow does not
 * leave through the underlay, or a negative drop reason. Global: see nat4_write. */
__attribute__((noinline)) int snat_open(struct __sk_buff *skb, __u32 saddr, __u32 daddr,
                                        __u32 ports, __u32 proto)
{
	struct snat_key key = {.remote = daddr, .remote_port = ports, .proto = proto};
	struct snat_entry e = {.addr = saddr, .port = ports >> 16, .created = bpf_jiffies64()};
	int ret = route_out(skb, saddr, daddr);

	if (ret != OUT_UNDERLAY)
		return ret;
	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP && proto != IPPROTO_ICMP)
		return -DROP_UNSUPPORTED_PROTOCOL;
	return snat_pick(&key, &e);
}

/* Moves a port to those of established flows. Returns the port, with SNAT_KEPT once
 * it is there: a busy bucket (see ct_promote) lets it wait for the next packet, and so
 * does another CPU that was first, for this flow or, where this one had lost the port,
 * for the one that has it now. The next packet's snat_keep tells the two apart. */
static __always_inline int snat_promote(const struct snat_key *key, const struct snat_entry *e)
{
	__u32 port = bpf_ntohs(key->port);
	long err = bpf_map_update_elem(&snat4, key, e, BPF_NOEXIST);

	if (err == -EBUSY || err == -EEXIST)
		return port;
	if (err)
		return -DROP_NO_SNAT_PORT;
	bpf_map_delete_elem(&snat4_open, key);
	return port | SNAT_KEPT;
}

/* Sees to the port of a flow that was half-open: that it still has it, else it gets
 * another; with SNAT_KEPT, that it has it for good. Returns it, with SNAT_KEPT when
 * that is so, or a negative drop reason. Global: see nat4_write. */
__attribute__((noinline)) int snat_keep(__u32 saddr, __u32 daddr, __u32 ports, __u32 proto,
                                        __u32 port)
{
	struct snat_key key = {
	    .remote = daddr, .remote_port = ports, .port = bpf_htons(port), .proto = proto};
	struct snat_entry e = {.addr = saddr, .port = ports >> 16, .created = bpf_jiffies64()};
	int ret;

	if (snat_is(bpf_map_lookup_elem(&snat4, &key), &e))
		return port | SNAT_KEPT;
	if (!snat_is(bpf_map_lookup_elem(&snat4_open, &key), &e) &&
	    !snat_take(&key, &e, BPF_NOEXIST)) {
		if (snat_is(bpf_map_lookup_elem(&snat4, &key), &e))
			return port | SNAT_KEPT; /* an answer came meanwhile */
		ret = snat_pick(&key, &e);
		if (ret < 0)
			return ret;
	}
	return port & SNAT_KEPT ? snat_promote(&key, &e) : bpf_ntohs(key.port);
}

/* Notes the port that a flow has got (snat_open, snat_keep), or says why none. */
static __always_inline int snat_note(struct packet *p, struct ct_entry *e, int ret)
{
	if (ret < 0) {
		p->line = __LINE__;
		return ret < -DROP_REASONS ? -DROP_REWRITE_FAILED : ret;
	}
	e->snat_port = ret;
	e->snat_open = !(ret & SNAT_KEPT);
	return 0;
}

/* Gives the flow a port if it wants one. t is the packet's tuple as it leaves. */
static __always_inline int snat_flow(struct __sk_buff *skb, struct packet *p, const struct flow *f,
                                     const struct tuple4 *t, struct ct_entry *e)
{
	int ret;

	if (!snat_ports || (e->snat_port && (!e->snat_open || p->opens)))
		return 0;
	if (!e->snat_port)
		ret = snat_open(skb, t->saddr, t->daddr, port_pair(t->sport, t->dport), t->proto);
	else
		ret = snat_keep(t->saddr, t->daddr, port_pair(t->sport, t->dport), t->proto,
		                e->snat_port | (f->half_open ? 0 : SNAT_KEPT));
	return snat_note(p, e, ret);
}

/* Out by the underlay, as a router does it. */
static __always_inline int snat_leave(struct __sk_buff *skb)
{
	struct iphdr *ip = data(skb) + ETH_HLEN;

	if ((void *)(ip + 1) > data_end(skb))
		return -DROP_REWRITE_FAILED;
	ip->check =
	    csum_fold_diff(ip->check, *(__be16 *)&ip->ttl, (ip->ttl - 1) | ip->protocol << 8);
	ip->ttl--;
	return bpf_redirect_neigh(underlay_ifindex, NULL, 0, 0);
}

/* Sends the packet out with the node's address. A packet whose time is over is
 * left to the stack, which says so. Global: see nat4_write. */
__attribute__((noinline)) int snat_send(struct __sk_buff *skb, __u32 port, __u32 later)
{
	struct iphdr *ip = data(skb) + ETH_HLEN;
	struct udphdr *l4 = (void *)(ip + 1);
	__be16 dport = 0;

	if ((void *)(ip + 1) > data_end(skb))
		return -DROP_MALFORMED;
	if (ip->ttl <= 1)
		return TC_ACT_OK;
	if (!later && ip->protocol != IPPROTO_ICMP) {
		if ((void *)(l4 + 1) > data_end(skb))
			return -DROP_MALFORMED;
		dport = l4->dest;
	}
	if (nat4_write(skb, node_addr4, ip->daddr, port_pair(bpf_htons(port), dport), later))
		return -DROP_REWRITE_FAILED;
	return snat_leave(skb);
}

/* Sends a pod's ICMP error about an answer out with the node's address, as one about
 * what came to the node. Global: see nat4_write. */
__attribute__((noinline)) int snat_error(struct __sk_buff *skb, __u32 port)
{
	struct iphdr *ip = data(skb) + ETH_HLEN;

	if ((void *)(ip + 1) > data_end(skb))
		return -DROP_MALFORMED;
	if (ip->ttl <= 1)
		return -DROP_MALFORMED; /* an error about an error there is none (RFC 1122) */
	if (related_write(skb, QUOTED_DESTINATION, node_addr4, bpf_htons(port)))
		return -DROP_REWRITE_FAILED;
	return snat_leave(skb);
}

/* How the outside sees a flow. */
static __always_inline void snat_key(struct snat_key *key, __be32 remote, __be16 remote_port,
                                     __be16 port, __u8 proto)
{
	key->remote = remote;
	key->remote_port = remote_port;
	key->port = port;
	key->proto = proto;
}

/* The pod that an answer is for. *open: its flow is half-open. See ct_find for the
 * third look: what has no pod is the host's. */
static __always_inline struct snat_entry *snat_find(const struct snat_key *key, int *open)
{
	struct snat_entry *s = bpf_map_lookup_elem(&snat4, key);

	*open = !s;
	if (s)
		return s;
	s = bpf_map_lookup_elem(&snat4_open, key);
	return s ? s : bpf_map_lookup_elem(&snat4, key);
}
