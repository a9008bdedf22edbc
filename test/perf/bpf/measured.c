/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The node's programs, made so that BPF_PROG_TEST_RUN can repeat them. Each
 * program here is one of bpf/ behind what puts the packet back to what it was
 * before the round; what that costs is measured by programs of its own. In place
 * of writing the tunnel's headers the packet gets a tunnel key, and goes to a
 * device, as with a tunnel device of the kernel. All else is the same source. */
#include "../../../bpf/lib/tunnel.h"

struct bpf_tunnel_key {
	__u32 tunnel_id;
	__u32 remote_ipv4; /* host order */
	__u32 pad[3];
	__u8 tos;
	__u8 ttl;
	__u16 ext;
	__u32 label;
	__u32 local_ipv4;
	__u32 pad_local[3];
};

enum {
	/* up to and with tos, ttl and label: the kernel takes shorter keys */
	KEY_SIZE = __builtin_offsetof(struct bpf_tunnel_key, local_ipv4),
	ZERO_CHECKSUM = 1 << 1,
};

/* Not on the stack, of which the programs leave too little. */
struct bpf_tunnel_key key;

static __always_inline int key_send(struct __sk_buff *skb, struct packet *p,
                                    const struct node *node, __u32 hop, __u32 vni, __u32 l4)
{
	__be32 remote = node->addr.w[3];
	int ret = 0;

	if (external_end(p, node, hop, &ret) || ret < 0 || !remote)
		return DROP(p, DROP_NO_TUNNEL_ENDPOINT);
	if (unlikely(p->mss) && clamp_mss(skb, l4, p->mss))
		return DROP(p, DROP_REWRITE_FAILED);
	key.tunnel_id = vni;
	key.remote_ipv4 = bpf_ntohl(remote);
	key.tos = p->tos;
	key.ttl = IP_TTL;
	if (bpf_skb_set_tunnel_key(skb, &key, KEY_SIZE, ZERO_CHECKSUM))
		return DROP(p, DROP_REWRITE_FAILED);
	return bpf_redirect(underlay_ifindex, 0);
}

#define tunnel_send(skb, p, node, hop, vni, hash)                                                  \
	((void)(hash), key_send(skb, p, node, hop, vni, ETH_HLEN + IP_HLEN))
#define tunnel_wrap(skb, p, node, hop, vni, hash, l4, proto)                                       \
	((void)(hash), key_send(skb, p, node, hop, vni, l4))
#include "../../../bpf/hawser.c"

/* What the test sets. */
__u8 header[128];    /* of the packet as it comes in, from Ethernet on */
__be32 first_remote; /* of the random flows' destinations; of IPv6 the last word */
__u32 remotes;       /* how many they are */
__u64 wrong;         /* rounds that did not end in a redirect */
__u64 state = 88172645463325252ULL;

enum {
	HEADER = 54,                        /* Ethernet, IPv4, TCP */
	HEADER6 = 74,                       /* the same of IPv6 */
	TUNNEL_HEADER = TUNNEL_INNER + 40,  /* the tunnel's before them */
	TUNNEL_HEADER6 = TUNNEL_INNER + 60, /* the same of IPv6 */
};

static __always_inline int judged(int act)
{
	if (act != TC_ACT_REDIRECT)
		wrong++;
	return act;
}

static __always_inline int run_pod(struct __sk_buff *skb)
{
	struct packet *p = new_packet(skb, PROG_FROM_POD, DIR_EGRESS);

	return p ? finish_answering(skb, p, pod_packet(skb, p)) : TC_ACT_SHOT;
}

/* What stands in the slots, to which the programs below jump with IPv6: the
 * verdict of a packet that went there is not seen where it came from. */
SEC("tc")
int slot_pod6(struct __sk_buff *skb)
{
	struct packet *p = new_packet(skb, PROG_FROM_POD, DIR_EGRESS);

	return judged(p ? finish_answering6(skb, p, pod_packet6(skb, p)) : TC_ACT_SHOT);
}

SEC("tc")
int slot_overlay6(struct __sk_buff *skb)
{
	return judged(overlay_packet6(skb));
}

SEC("tc")
int empty(struct __sk_buff *skb)
{
	(void)skb;
	return TC_ACT_REDIRECT;
}

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct tuple4);
	__type(value, struct ct_entry);
} calibration SEC(".maps");

/* Calibration: what two lookups of a key of 16 bytes take. */
SEC("tc")
int lookups(struct __sk_buff *skb)
{
	struct tuple4 key = {};

	(void)skb;
	if (!bpf_map_lookup_elem(&calibration, &key))
		return TC_ACT_SHOT;
	key.saddr = 1;
	return bpf_map_lookup_elem(&calibration, &key) ? TC_ACT_REDIRECT : TC_ACT_SHOT;
}

/* A packet that the program leaves as it is. */
SEC("tc")
int pod(struct __sk_buff *skb)
{
	return judged(run_pod(skb));
}

SEC("tc")
int restore(struct __sk_buff *skb)
{
	return bpf_skb_store_bytes(skb, 0, header, HEADER, 0) ? TC_ACT_SHOT : TC_ACT_REDIRECT;
}

SEC("tc")
int restore6(struct __sk_buff *skb)
{
	return bpf_skb_store_bytes(skb, 0, header, HEADER6, 0) ? TC_ACT_SHOT : TC_ACT_REDIRECT;
}

/* A packet that is translated. */
SEC("tc")
int pod_restored(struct __sk_buff *skb)
{
	bpf_skb_store_bytes(skb, 0, header, HEADER, 0);
	return judged(run_pod(skb));
}

SEC("tc")
int pod_restored6(struct __sk_buff *skb)
{
	bpf_skb_store_bytes(skb, 0, header, HEADER6, 0);
	return judged(run_pod(skb));
}

static __always_inline int pick_flow(struct __sk_buff *skb)
{
	struct iphdr *ip = data(skb) + ETH_HLEN;

	if ((void *)(ip + 1) > data_end(skb))
		return TC_ACT_SHOT;
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	ip->daddr = bpf_htonl(bpf_ntohl(first_remote) + (__u32)(state >> 32) % remotes);
	return TC_ACT_REDIRECT;
}

SEC("tc")
int random_flow(struct __sk_buff *skb)
{
	return pick_flow(skb);
}

SEC("tc")
int pod_random(struct __sk_buff *skb)
{
	pick_flow(skb);
	return judged(run_pod(skb));
}

/* A function, for of the stack the programs leave too little. */
static __noinline void end_cached(void)
{
	__u32 last = IP_EPOCHS, *epoch = bpf_map_lookup_elem(&ipcache_epochs, &last);

	if (epoch)
		(*epoch)++;
}

/* A packet whose cached outcome is out of date each time. */
SEC("tc")
int pod_slow(struct __sk_buff *skb)
{
	end_cached();
	return judged(run_pod(skb));
}

static __always_inline int pick_port(struct __sk_buff *skb)
{
	struct iphdr *ip = data(skb) + ETH_HLEN;
	struct udphdr *l4 = (void *)(ip + 1);

	if ((void *)(l4 + 1) > data_end(skb))
		return TC_ACT_SHOT;
	state++;
	l4->source = state;
	ip->daddr = bpf_htonl(bpf_ntohl(first_remote) + (__u32)(state >> 16) % remotes);
	return TC_ACT_REDIRECT;
}

SEC("tc")
int new_flow(struct __sk_buff *skb)
{
	return pick_port(skb);
}

/* A packet that opens a flow. */
SEC("tc")
int pod_new(struct __sk_buff *skb)
{
	pick_port(skb);
	return judged(run_pod(skb));
}

static __always_inline int pick_port6(struct __sk_buff *skb)
{
	struct ipv6hdr *ip = data(skb) + ETH_HLEN;
	struct udphdr *l4 = (void *)(ip + 1);

	if ((void *)(l4 + 1) > data_end(skb))
		return TC_ACT_SHOT;
	state++;
	l4->source = state;
	ip->daddr.w[3] = bpf_htonl(bpf_ntohl(first_remote) + (__u32)(state >> 16) % remotes);
	return TC_ACT_REDIRECT;
}

SEC("tc")
int new_flow6(struct __sk_buff *skb)
{
	return pick_port6(skb);
}

SEC("tc")
int pod_new6(struct __sk_buff *skb)
{
	pick_port6(skb);
	return judged(run_pod(skb));
}

static __always_inline void wrap(struct __sk_buff *skb, __u32 size)
{
	bpf_skb_adjust_room(skb, TUNNEL_OVERHEAD, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO);
	bpf_skb_store_bytes(skb, 0, header, size, 0);
}

static __always_inline long unwrap(struct __sk_buff *skb, __u64 flags)
{
	return bpf_skb_adjust_room(skb, -TUNNEL_OVERHEAD, BPF_ADJ_ROOM_MAC,
	                           BPF_F_ADJ_ROOM_FIXED_GSO | flags);
}

/* Wrapping and stripping, and nothing between. */
SEC("tc")
int rewrap(struct __sk_buff *skb)
{
	wrap(skb, TUNNEL_HEADER);
	return unwrap(skb, 0) ? TC_ACT_SHOT : TC_ACT_REDIRECT;
}

SEC("tc")
int rewrap6(struct __sk_buff *skb)
{
	wrap(skb, TUNNEL_HEADER6);
	return unwrap(skb, decap6_flag) ? TC_ACT_SHOT : TC_ACT_REDIRECT;
}

/* How long a strip takes, and the clock itself. */
__u64 strips, strip_ns, clock_ns;

static __always_inline int time_strip(struct __sk_buff *skb, __u64 flags)
{
	__u64 a, b, c;

	a = bpf_ktime_get_ns();
	b = bpf_ktime_get_ns();
	unwrap(skb, flags);
	c = bpf_ktime_get_ns();
	strips++;
	clock_ns += b - a;
	strip_ns += c - b;
	return TC_ACT_REDIRECT;
}

SEC("tc")
int strip(struct __sk_buff *skb)
{
	wrap(skb, TUNNEL_HEADER);
	return time_strip(skb, 0);
}

SEC("tc")
int strip6(struct __sk_buff *skb)
{
	wrap(skb, TUNNEL_HEADER6);
	return time_strip(skb, decap6_flag);
}

/* All of what the tunnel brings. */
SEC("tc")
int overlay(struct __sk_buff *skb)
{
	wrap(skb, TUNNEL_HEADER);
	return judged(overlay_packet(skb));
}

SEC("tc")
int overlay6(struct __sk_buff *skb)
{
	wrap(skb, TUNNEL_HEADER6);
	return judged(overlay_packet(skb));
}
