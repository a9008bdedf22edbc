/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The one object that a node loads: all programs share one set of maps. */
#include "from_pod.c"
#include "from_overlay.c"
#include "from_host.c"
#include "from_pod6.c"
#include "from_overlay6.c"
#include "from_host6.c"
#include "from_tunnel.c"
#include "from_stack.c"
#include "sock.c"

/* The kernel's clock of conntrack entries, for user space: jiffies, 32 bits. */
SEC("tc")
int clock(struct __sk_buff *skb)
{
	(void)skb;
	return bpf_jiffies64();
}

char _license[] SEC("license") = "Dual BSD/GPL";
