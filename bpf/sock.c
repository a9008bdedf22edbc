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

/* What a connected socket is connected to, in place of a service. There is one for
 * a socket: connecting again replaces it, closing removes it. */
struct sock_link {
	struct addr backend;
	struct addr service;
	__be16 backend_port;
	__be16 service_port;
	__u32 frontend;
	__u8 proto;
	__u8 pad[3];
};

/* By cookie. Nothing is pushed out of it: sockets that find it full are among
 * sock_peers. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct sock_link);
} sock_links SEC(".maps");

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

/* Remembers what a connected socket is connected to. What is known already is not
 * written again: that costs more than all the rest. */
static __always_inline int sock_connected(const struct sock_key *key, const struct sock_peer *peer)
{
	struct sock_link link = {.backend = key->addr,
	                         .service = peer->addr,
	                         .backend_port = key->port,
	                         .service_port = peer->port,
	                         .frontend = peer->frontend,
	                         .proto = key->proto};
	const struct sock_link *known = bpf_map_lookup_elem(&sock_links, &key->cookie);

	if (known && is_addr4(&known->backend, link.backend.w[3]) &&
	    is_addr4(&known->service, link.service.w[3]) &&
	    known->backend_port == link.backend_port && known->service_port == link.service_port &&
	    known->frontend == link.frontend)
		return 0;
	return bpf_map_update_elem(&sock_links, &key->cookie, &link, BPF_ANY);
}

/* Remembers what a socket has in place of a service. */
static __always_inline int sock_remember(const struct sock_key *key, const struct sock_peer *peer)
{
	if (peer->flags & SOCK_CONNECTED) {
		if (!sock_connected(key, peer))
			return 0;
	} else if (bpf_map_lookup_elem(&sock_peers, key)) {
		return 0;
	}
	return bpf_map_update_elem(&sock_peers, key, peer, BPF_ANY);
}

/* Sends the socket to a backend, and returns whether it did. */
static __always_inline int sock_to_backend(struct bpf_sock_addr *ctx, __u16 flags)
{
	struct tuple4 t = {
	    .daddr = ctx->user_ip4, .dport = (__be16)ctx->user_port, .proto = ctx->protocol};
	struct frontend *fe = frontend4(&t);
	struct sock_key key = {.proto = t.proto};
	struct sock_peer peer = {.port = t.dport, .flags = flags};
	struct backend *b;
	__u32 number;

	if (!fe || fe->affinity)
		return 0;
	key.cookie = bpf_get_socket_cookie(ctx);
	b = sock_backend(fe, key.cookie, &t, flags, &number);
	if (!b)
		return 0;
	key.addr = b->addr;
	key.port = b->port;
	peer.addr = addr4(t.daddr);
	peer.frontend = fe->number;
	if (sock_remember(&key, &peer))
		return 0;
	ctx->user_ip4 = b->addr.w[3];
	ctx->user_port = b->port;
	return 1;
}

/* Shows the service where the socket's peer is its backend. */
static __always_inline void sock_to_service(struct bpf_sock_addr *ctx)
{
	struct sock_key key = {.proto = ctx->protocol, .port = (__be16)ctx->user_port};
	struct sock_link *link;
	struct sock_peer *peer;

	key.addr = addr4(ctx->user_ip4);
	key.cookie = bpf_get_socket_cookie(ctx);
	link = bpf_map_lookup_elem(&sock_links, &key.cookie);
	if (link && is_addr4(&link->backend, ctx->user_ip4) && link->backend_port == key.port) {
		ctx->user_ip4 = link->service.w[3];
		ctx->user_port = link->service_port;
		return;
	}
	peer = bpf_map_lookup_elem(&sock_peers, &key);
	if (!peer)
		return;
	ctx->user_ip4 = peer->addr.w[3];
	ctx->user_port = peer->port;
}

/* A datagram socket may connect again, to what is no service. */
static __always_inline void sock_unlink(struct bpf_sock_addr *ctx)
{
	__u64 cookie = bpf_get_socket_cookie(ctx);

	if (bpf_map_lookup_elem(&sock_links, &cookie))
		bpf_map_delete_elem(&sock_links, &cookie);
}

SEC("cgroup/connect4")
int sock_connect4(struct bpf_sock_addr *ctx)
{
	if (!sock_to_backend(ctx, SOCK_CONNECTED) && ctx->protocol == IPPROTO_UDP)
		sock_unlink(ctx);
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
	if (bpf_map_delete_elem(&sock_links, &key.cookie))
		bpf_map_delete_elem(&sock_peers, &key);
	return SOCK_PROCEED;
}
