/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The part of the kernel's interface that the programs use: types, packet
 * headers, constants and helpers. Numbers are the kernel's ABI. Having them here
 * means that clang is all it takes to build the objects. */
#pragma once

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;
typedef signed int __s32;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u16 __sum16;
typedef __u32 __wsum;

#define NULL             ((void *)0)
#define SEC(name)        __attribute__((section(name), used))
#define __always_inline  inline __attribute__((always_inline))
#define __noinline       __attribute__((noinline))
#define __packed         __attribute__((packed))
#define __aligned(n)     __attribute__((aligned(n)))
#define likely(x)        __builtin_expect(!!(x), 1)
#define unlikely(x)      __builtin_expect(!!(x), 0)
#define READ_ONCE(x)     (*(volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, v) (*(volatile __typeof__(x) *)&(x) = (v))
#define barrier()        __asm__ __volatile__("" ::: "memory")

/* Maps in BTF form. */
#define __uint(name, val)  int(*name)[val]
#define __type(name, val)  __typeof__(val) *name
#define __array(name, val) __typeof__(val) *name[]

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "only little-endian targets are built"
#endif
#define bpf_htons(x) ((__be16)__builtin_bswap16((__u16)(x)))
#define bpf_ntohs(x) ((__u16)__builtin_bswap16((__be16)(x)))
#define bpf_htonl(x) ((__be32)__builtin_bswap32((__u32)(x)))
#define bpf_ntohl(x) ((__u32)__builtin_bswap32((__be32)(x)))

enum {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PROG_ARRAY = 3,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_HASH_OF_MAPS = 13,
	BPF_MAP_TYPE_RINGBUF = 27,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_F_NO_PREALLOC = 1,
	BPF_F_INGRESS = 1,
};

enum {
	TC_ACT_OK = 0,
	TC_ACT_SHOT = 2,
	TC_ACT_REDIRECT = 7,
};

enum {
	EEXIST = 17,
	EBUSY = 16,
};

/* bpf_skb_adjust_room */
enum {
	BPF_ADJ_ROOM_MAC = 1,
};

enum {
	BPF_F_ADJ_ROOM_FIXED_GSO = 1 << 0,
	BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 = 1 << 1,
	BPF_F_ADJ_ROOM_ENCAP_L4_UDP = 1 << 4,
	BPF_F_ADJ_ROOM_ENCAP_L2_ETH = 1 << 6,
	BPF_ADJ_ROOM_ENCAP_L2_SHIFT = 56,
};

/* bpf_skb_set_tunnel_key */
enum {
	BPF_F_ZERO_CSUM_TX = 1 << 1,
	BPF_F_DONT_FRAGMENT = 1 << 2,
};

/* Whom a packet is for: __sk_buff's pkt_type. */
enum {
	PACKET_HOST = 0,
};

/* bpf_l4_csum_replace */
enum {
	BPF_F_PSEUDO_HDR = 1 << 4,
	BPF_F_MARK_MANGLED_0 = 1 << 5,
};

struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data;
	__u32 data_end;
	__u32 napi_id;
	__u32 family;
	__u32 remote_ip4;
	__u32 local_ip4;
	__u32 remote_ip6[4];
	__u32 local_ip6[4];
	__u32 remote_port;
	__u32 local_port;
	__u32 data_meta;
	__u64 flow_keys __aligned(8);
	__u64 tstamp;
	__u32 wire_len;
	__u32 gso_segs;
	__u64 sk __aligned(8);
	__u32 gso_size;
};

enum {
	AF_INET6 = 10,
};

/* What the cgroup hooks of sockets see. */
struct bpf_sock_addr {
	__u32 user_family;
	__u32 user_ip4; /* network order */
	__u32 user_ip6[4];
	__u32 user_port; /* network order, in the low half */
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 msg_src_ip4;
	__u32 msg_src_ip6[4];
	__u64 sk __aligned(8);
};

/* What the hook of closed sockets sees. */
struct bpf_sock {
	__u32 bound_dev_if;
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 mark;
	__u32 priority;
	__u32 src_ip4;
	__u32 src_ip6[4];
	__u32 src_port; /* host order */
	__be16 dst_port;
	__u16 pad;
	__u32 dst_ip4; /* network order */
	__u32 dst_ip6[4];
	__u32 state;
	__s32 rx_queue_mapping;
};

enum {
	ETH_ALEN = 6,
	ETH_HLEN = 14,
	ETH_P_IP = 0x0800,
	ETH_P_ARP = 0x0806,
	ETH_P_IPV6 = 0x86DD,
};

enum {
	IPPROTO_HOPOPTS = 0,
	IPPROTO_ICMP = 1,
	IPPROTO_TCP = 6,
	IPPROTO_UDP = 17,
	IPPROTO_ROUTING = 43,
	IPPROTO_FRAGMENT = 44,
	IPPROTO_ICMPV6 = 58,
	IPPROTO_NONE = 59,
	IPPROTO_DSTOPTS = 60,
	IPPROTO_SCTP = 132,
	IPPROTO_RESERVED = 255, /* of nothing that is sent */
};

struct ethhdr {
	__u8 dst[ETH_ALEN];
	__u8 src[ETH_ALEN];
	__be16 proto;
};

struct arphdr {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_len;
	__u8 protocol_len;
	__be16 op;
	__u8 sender_mac[ETH_ALEN];
	__be32 sender_ip;
	__u8 target_mac[ETH_ALEN];
	__be32 target_ip;
} __packed __aligned(2);

enum {
	ARP_HARDWARE_ETHERNET = 1,
	ARP_REQUEST = 1,
	ARP_REPLY = 2,
};

struct iphdr {
	__u8 version_ihl; /* version 4 | header length in words 4 */
	__u8 tos;
	__be16 tot_len;
	__be16 id;
	__be16 frag_off; /* 0 | DF | MF | offset in 8 bytes 13 */
	__u8 ttl;
	__u8 protocol;
	__sum16 check;
	__be32 saddr;
	__be32 daddr;
};

enum {
	IP_VERSION_IHL = 0x45, /* version 4, no options */
	IP_DF = 0x4000,
	IP_MF = 0x2000,
	IP_OFFSET = 0x1FFF,   /* in 8 bytes */
	IP_FRAGMENT = 0x3FFF, /* MF or an offset */
	IP_MAX = 0xFFFF,      /* bytes of a datagram */
	IP_TTL = 64,
};

/* An IPv6 address; in keys also an IPv4 one, as ::ffff:a.b.c.d. */
struct addr {
	__be32 w[4];
};

struct ipv6hdr {
	__be32 version_class; /* version 4 | traffic class 8 | flow label 20 */
	__be16 payload_len;   /* of what follows this header; 0 in a jumbogram */
	__u8 nexthdr;
	__u8 hop_limit;
	struct addr saddr;
	struct addr daddr;
};

/* What all extension headers begin with, and what a fragment header is. */
struct ipv6ext {
	__u8 nexthdr;
	__u8 len;        /* in 8 bytes, without the first 8; 0 in a fragment header */
	__be16 frag_off; /* offset in 8 bytes 13 | 0 2 | more 1 */
	__be32 id;
};

enum {
	IP6_FRAG_OFFSET = 0xFFF8, /* in bytes */
	IP6_FRAG_MORE = 1,
	IP6_HOPS_LINK = 255, /* the hop limit of what comes from the link itself */
};

struct udphdr {
	__be16 source;
	__be16 dest;
	__be16 len;
	__sum16 check;
};

struct tcphdr {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack;
	__u8 offset; /* header length in words 4 | reserved 4 */
	__u8 flags;
	__be16 window;
	__sum16 check;
	__be16 urgent;
};

enum {
	TCP_FIN = 0x01,
	TCP_SYN = 0x02,
	TCP_RST = 0x04,
	TCP_ACK = 0x10,
};

struct icmphdr {
	__u8 type;
	__u8 code;
	__sum16 check;
	__be16 id;  /* echo; unused in errors */
	__be16 seq; /* echo; the next hop's MTU in "fragmentation needed" */
};

enum {
	TCP_OPTION_END = 0,
	TCP_OPTION_NOP = 1,
	TCP_OPTION_MSS = 2,
	TCP_OPTION_MSS_LEN = 4,
};

enum {
	ICMP_ECHOREPLY = 0,
	ICMP_UNREACHABLE = 3,
	ICMP_SOURCE_QUENCH = 4,
	ICMP_REDIRECT = 5,
	ICMP_ECHO = 8,
	ICMP_TIME_EXCEEDED = 11,
	ICMP_PARAMETER_PROBLEM = 12,
	ICMP_CODE_PORT = 3,
	ICMP_CODE_FRAG_NEEDED = 4,
};

/* ICMPv6 (RFC 4443). Types below 128 are errors. */
enum {
	ICMP6_UNREACHABLE = 1,
	ICMP6_TOO_BIG = 2,
	ICMP6_PARAMETER_PROBLEM = 4,
	ICMP6_ECHO = 128,
	ICMP6_ECHOREPLY = 129,
	ICMP6_CODE_PORT = 4,
};

/* Neighbour discovery (RFC 4861) and multicast listeners (RFC 2710, RFC 3810). */
enum {
	ICMP6_LISTENER_QUERY = 130,
	ICMP6_LISTENER_DONE = 132,
	ICMP6_ROUTER_SOLICITATION = 133,
	ICMP6_NEIGHBOUR_SOLICITATION = 135,
	ICMP6_NEIGHBOUR_ADVERTISEMENT = 136,
	ICMP6_REDIRECT = 137,
	ICMP6_LISTENER_REPORT2 = 143,
};

struct ndphdr {
	__u8 type;
	__u8 code;
	__sum16 check;
	__be32 flags;
	struct addr target;
};

/* The option with a link layer's address. */
struct ndp_option {
	__u8 type;
	__u8 len; /* in 8 bytes */
	__u8 mac[6];
};

enum {
	NDP_TARGET_ADDRESS = 2,
	NDP_ROUTER = 0x80000000u,
	NDP_SOLICITED = 0x40000000u,
	NDP_OVERRIDE = 0x20000000u,
};

struct bpf_redir_neigh;

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value,
                                         __u64 flags) = (void *)2;
static long (*const bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static __u64 (*const bpf_ktime_get_ns)(void) = (void *)5;
static long (*const bpf_tail_call)(void *ctx, void *prog_array, __u32 index) = (void *)12;
static __u32 (*const bpf_get_prandom_u32)(void) = (void *)7;
static long (*const bpf_skb_store_bytes)(struct __sk_buff *skb, __u32 offset, const void *from,
                                         __u32 len, __u64 flags) = (void *)9;
static long (*const bpf_l4_csum_replace)(struct __sk_buff *skb, __u32 offset, __u64 from, __u64 to,
                                         __u64 flags) = (void *)11;
static long (*const bpf_skb_get_tunnel_key)(struct __sk_buff *skb, void *key, __u32 size,
                                            __u64 flags) = (void *)20;
static long (*const bpf_skb_set_tunnel_key)(struct __sk_buff *skb, void *key, __u32 size,
                                            __u64 flags) = (void *)21;
static long (*const bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)23;
static long (*const bpf_skb_load_bytes)(const void *skb, __u32 offset, void *to,
                                        __u32 len) = (void *)26;
static __s32 (*const bpf_csum_diff)(void *from, __u32 from_size, void *to, __u32 to_size,
                                    __wsum seed) = (void *)28;
static long (*const bpf_skb_change_proto)(struct __sk_buff *skb, __be16 proto,
                                          __u64 flags) = (void *)31;
static long (*const bpf_skb_change_type)(struct __sk_buff *skb, __u32 type) = (void *)32;
static long (*const bpf_skb_change_tail)(struct __sk_buff *skb, __u32 len,
                                         __u64 flags) = (void *)38;
static long (*const bpf_skb_pull_data)(struct __sk_buff *skb, __u32 len) = (void *)39;
static __u64 (*const bpf_get_socket_cookie)(void *ctx) = (void *)46;
static __u32 (*const bpf_set_hash)(struct __sk_buff *skb, __u32 hash) = (void *)48;
static long (*const bpf_skb_adjust_room)(struct __sk_buff *skb, __s32 len_diff, __u32 mode,
                                         __u64 flags) = (void *)50;
static long (*const bpf_fib_lookup)(void *ctx, void *params, int plen, __u32 flags) = (void *)69;
static long (*const bpf_probe_read_kernel)(void *to, __u32 size, const void *from) = (void *)113;
static __u64 (*const bpf_jiffies64)(void) = (void *)118;
static void *(*const bpf_ringbuf_reserve)(void *ringbuf, __u64 size, __u64 flags) = (void *)131;
static void (*const bpf_ringbuf_submit)(void *data, __u64 flags) = (void *)132;
static long (*const bpf_redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *params, int plen,
                                        __u64 flags) = (void *)152;
static long (*const bpf_redirect_peer)(__u32 ifindex, __u64 flags) = (void *)155;
static long (*const bpf_check_mtu)(void *ctx, __u32 ifindex, __u32 *mtu_len, __s32 len_diff,
                                   __u64 flags) = (void *)163;
