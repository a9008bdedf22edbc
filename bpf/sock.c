/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* sock_*: service addresses at the socket. A process that connects or sends to
 * one is connected to a backend before there is a packet, and goes on seeing the
 * service's address as its peer.
 *
 * What cannot be balanced here goes out untranslated and is balanced, or
 * answered, at the pod's or the host's device: services without backends, and
 * those whose clients stay with a backend, for here the client's address is not
 * known yet. */
#include "lib/service.h"

/* What a socket is connected to, or has sent to, in place of a service. */
struct sock_key {
	__u64 cookie;
	struct addr addr; /* the backend */
	__be16 port;
	__u8 proto;
	__u8 pad[5];
};

enum sock_flags {
	SOCK_CONNECTED = 1 << 0,
};

struct sock_peer {
	struct addr addr; /* the service */
	__be16 port;
	__u16 flags; /* enum sock_flags */
	__u32 frontend;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct sock_key);
	__type(value, struct sock_peer);
} sock_peers SEC(".maps");

enum {
	SOCK_PROCEED = 1,
};

/* The backend of a socket: any for one that connects, the same for as long as the
 * service's backends are the same for one that does not. */
static __always_inline struct backend *sock_backend(const struct frontend *fe, __u64 cookie,
                                                    const struct tuple4 *t, __u16 flags,
                                                    __u32 *number)
{
	if (flags & SOCK_CONNECTED)
		return slot_backend(fe, bpf_get_prandom_u32(), number);
	return pick_backend(fe, ((__u32)cookie ^ t->daddr ^ t->dport) * 0x9E3779B1, number);
}

/* Remembers the service. What is known already is not written again: that costs
 * more than all the rest. */
static __always_inline int sock_remember(const struct sock_key *key, const struct sock_peer *peer)
{
	const struct sock_peer *known = bpf_map_lookup_elem(&sock_peers, key);

	if (known && known->addr.w[3] == peer->addr.w[3] && known->addr.w[2] == peer->addr.w[2] &&
	    known->port == peer->port && known->flags == peer->flags &&
	    known->frontend == peer->frontend)
		return 0;
	if (known && !(peer->flags & SOCK_CONNECTED))
		return 0;
	return bpf_map_update_elem(&sock_peers, key, peer, BPF_ANY);
}

/* Sends the socket to a backend. */
static __always_inline void sock_to_backend(struct bpf_sock_addr *ctx, __u16 flags)
{
	struct tuple4 t = {
	    .daddr = ctx->user_ip4, .dport = (__be16)ctx->user_port, .proto = ctx->protocol};
	struct frontend *fe = frontend4(&t);
	struct sock_key key = {.proto = t.proto};
	struct sock_peer peer = {.port = t.dport, .flags = flags};
	struct backend *b;
	__u32 number;

	if (!fe || fe->affinity)
		return;
	key.cookie = bpf_get_socket_cookie(ctx);
	b = sock_backend(fe, key.cookie, &t, flags, &number);
	if (!b)
		return;
	key.addr = b->addr;
	key.port = b->port;
	peer.addr = addr4(t.daddr);
	peer.frontend = fe->number;
	if (sock_remember(&key, &peer))
		return;
	ctx->user_ip4 = b->addr.w[3];
	ctx->user_port = b->port;
}

/* Shows the service where the socket's peer is its backend. */
static __always_inline void sock_to_service(struct bpf_sock_addr *ctx)
{
	struct sock_key key = {.proto = ctx->protocol, .port = (__be16)ctx->user_port};
	struct sock_peer *peer;

	key.addr = addr4(ctx->user_ip4);
	key.cookie = bpf_get_socket_cookie(ctx);
	peer = bpf_map_lookup_elem(&sock_peers, &key);
	if (!peer)
		return;
	ctx->user_ip4 = peer->addr.w[3];
	ctx->user_port = peer->port;
}

SEC("cgroup/connect4")
int sock_connect4(struct bpf_sock_addr *ctx)
{
	sock_to_backend(ctx, SOCK_CONNECTED);
	return SOCK_PROCEED;
}

SEC("cgroup/sendmsg4")
int sock_sendmsg4(struct bpf_sock_addr *ctx)
{
	sock_to_backend(ctx, 0);
	return SOCK_PROCEED;
}

SEC("cgroup/recvmsg4")
int sock_recvmsg4(struct bpf_sock_addr *ctx)
{
	sock_to_service(ctx);
	return SOCK_PROCEED;
}

SEC("cgroup/getpeername4")
int sock_peername4(struct bpf_sock_addr *ctx)
{
	sock_to_service(ctx);
	return SOCK_PROCEED;
}

/* A connected socket that is closed makes room at once; what others leave behind
 * is pushed out some time. */
SEC("cgroup/sock_release")
int sock_closed4(struct bpf_sock *sk)
{
	struct sock_key key = {.proto = sk->protocol, .port = sk->dst_port};

	if (!sk->dst_ip4)
		return SOCK_PROCEED;
	key.addr = addr4(sk->dst_ip4);
	key.cookie = bpf_get_socket_cookie(sk);
	bpf_map_delete_elem(&sock_peers, &key);
	return SOCK_PROCEED;
}
