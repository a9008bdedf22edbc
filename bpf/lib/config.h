/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Load-time constants, set by datapath/loader before the verifier sees them. */
#pragma once
#include "kernel.h"

const volatile __be32 node_addr4 = 0; /* this node's underlay address */
/* This node's address in the mesh for IPv6, the host's towards pods; all zero:
 * none. Read word by word, like MAC addresses. */
const volatile __be32 node_addr6[4] = {};
const volatile __u32 underlay_ifindex = 0;
const volatile __u32 host_ifindex = 0; /* the host's end of the host veth */
/* MAC addresses are read element by element: clang folds a copy of a volatile
 * constant array to zeros. */
const volatile __u16 host_mac[3] = {}; /* of host_ifindex */
const volatile __u16 net_mac[3] = {};  /* of the other end, which answers ARP */
const volatile __be16 tunnel_port = 0;
/* The collect-metadata VXLAN device that writes and takes off the tunnel's headers;
 * 0: we do. And how much of struct tunnel_key the kernel takes. */
const volatile __u32 tunnel_ifindex = 0;
const volatile __u32 tunnel_key_size = 44;
const volatile __u32 maglev_size = 16381; /* places of a table */
/* Ports of the node for flows of pods to the outside; 0 ports: they keep their
 * addresses. */
const volatile __u32 snat_first = 0;
const volatile __u32 snat_ports = 0;
/* The node's address for flows of IPv6 to the outside; all zero: they keep theirs.
 * Read word by word. */
const volatile __be32 snat_addr6[4] = {};
const volatile __u32 identity_shift = 16;   /* wire bits less cluster bits */
const volatile __u64 encap_extra_flags = 0; /* ENCAP_L2_ETH where the kernel has it */
/* How to say that a stripped packet is IPv6, and that a checksum is of IPv6; 0
 * where the kernel does not listen. */
const volatile __u64 decap6_flag = 0;
const volatile __u64 csum6_flag = 0;
/* While an upgrade moves conntrack to maps of another layout: how many bytes of an
 * entry both layouts have. 0: nothing is being moved. */
const volatile __u32 ct_moving = 0;
