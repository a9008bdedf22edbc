// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/hawser-mesh/hawser/agent/dns"
)

// maxNameservers is how many a resolver takes of a resolv.conf.
const maxNameservers = 3

// ServiceName is the name by which pods find a service.
func ServiceName(namespace, name string) string { return name + "." + namespace + "." + dns.Zone }

// writeNames stores what the pod sees as /etc/hosts and /etc/resolv.conf. The
// host's own files stay as they are.
func (l *Lab) writeNames(p Pod) error {
	var hosts strings.Builder
	hosts.WriteString("127.0.0.1 localhost\n")
	for _, a := range p.Addresses {
		fmt.Fprintf(&hosts, "%s %s\n", a, p.Name)
	}
	for path, text := range map[string]string{p.Place.Hosts: hosts.String(), p.Place.Resolv: l.resolvConf(p)} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("write names of pod %s: %w", p.Name, err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			return fmt.Errorf("write names of pod %s: %w", p.Name, err)
		}
	}
	return nil
}

// resolvConf asks the pod's own node, and others of its cluster while that one's
// agent is being replaced: a node without a server refuses at once, so that a
// resolver with one server only would have used up its tries in no time.
func (l *Lab) resolvConf(p Pod) string {
	var b strings.Builder
	for _, a := range l.nameservers(p) {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	fmt.Fprintf(&b, "search %s.%s %s\noptions timeout:1 attempts:5\n", p.Namespace, dns.Zone, dns.Zone)
	return b.String()
}

func (l *Lab) nameservers(p Pod) []netip.Addr {
	var own, others []netip.Addr
	c, _, _ := findNode(l.snapshot().Clusters, p.Node)
	for _, n := range c.Members {
		if n.Name == p.Node {
			own = append(own, n.Address)
		} else {
			others = append(others, n.Address)
		}
	}
	all := append(own, others...)
	return all[:min(len(all), maxNameservers)]
}
