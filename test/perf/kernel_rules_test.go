// SPDX-License-Identifier: Apache-2.0

package perf

import (
	"bytes"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// fedTo gives a program its input in a network namespace.
func fedTo(t *testing.T, ns, input string, argv ...string) {
	t.Helper()
	if _, err := exec.LookPath(argv[0]); err != nil {
		t.Skipf("%s is what Hawser is compared with: apt install nftables iptables", argv[0])
	}
	err := nsthread.InNetns(ns, func() error {
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Stdin = strings.NewReader(input)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w: %.300s", strings.Join(argv, " "), err, out.String())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// filter has the nodes enforce with nftables what perfPolicy says: the server's
// node what comes to the server, the client's what the client sends.
func filter(t *testing.T, s shape) {
	t.Helper()
	client := podAddr(0)
	fedTo(t, s.node[1], fmt.Sprintf(`table ip rules {
	set clients { type ipv4_addr; elements = { %s } }
	chain server {
		ip saddr @clients tcp dport { 9001, 9002 } accept
		ip saddr @clients udp dport 9003 accept
		drop
	}
	chain forward {
		type filter hook forward priority 0; policy accept;
		ct state established,related accept
		ip daddr %s jump server
	}
}
`, client, s.addr), "nft", "-f", "-")
	fedTo(t, s.node[0], fmt.Sprintf(`table ip rules {
	set servers { type ipv4_addr; elements = { %s } }
	chain client {
		ip daddr @servers accept
		drop
	}
	chain forward {
		type filter hook forward priority 0; policy accept;
		ct state established,related accept
		ip saddr %s jump client
	}
}
`, s.addr, client), "nft", "-f", "-")
}

// balanceNFT makes n services of the server as a verdict map and a chain each;
// what was before goes.
func balanceNFT(t *testing.T, s shape, n int) {
	t.Helper()
	var chains, elements strings.Builder
	for i := range n {
		fmt.Fprintf(&chains, "\tchain svc-%d {\n\t\tnumgen random mod 1 vmap { 0 : goto ep-%d }\n\t}\n\tchain ep-%d {\n\t\tip protocol tcp dnat to %s\n\t}\n",
			i, i, i, netip.AddrPortFrom(s.addr, onePort))
		fmt.Fprintf(&elements, "%s . tcp . %d : goto svc-%d,\n", scaleVIP(i), onePort, i)
	}
	fedTo(t, s.node[0], fmt.Sprintf(`table ip proxy
delete table ip proxy
table ip proxy {
%s	map services {
		type ipv4_addr . inet_proto . inet_service : verdict
		elements = { %s }
	}
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr . meta l4proto . th dport vmap @services
	}
}
`, chains.String(), elements.String()), "nft", "-f", "-")
}

// balanceIPTables makes n services of the server as a list of rules, and two
// chains each; what was before goes.
func balanceIPTables(t *testing.T, s shape, n int) {
	t.Helper()
	var chains, rules strings.Builder
	for i := range n {
		fmt.Fprintf(&chains, ":SVC-%d - [0:0]\n:SEP-%d - [0:0]\n", i, i)
		fmt.Fprintf(&rules, "-A SERVICES -d %s/32 -p tcp -m tcp --dport %d -j SVC-%d\n-A SVC-%d -j SEP-%d\n-A SEP-%d -p tcp -m tcp -j DNAT --to-destination %s\n",
			scaleVIP(i), onePort, i, i, i, i, netip.AddrPortFrom(s.addr, onePort))
	}
	fedTo(t, s.node[0], fmt.Sprintf("*nat\n:PREROUTING ACCEPT [0:0]\n:SERVICES - [0:0]\n%s-A PREROUTING -j SERVICES\n%sCOMMIT\n", chains.String(), rules.String()), "iptables-restore")
}
