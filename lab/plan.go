// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"go4.org/netipx"
)

// RunDir holds a directory per lab, and a lock beside it.
const RunDir = "/run/hawser-lab"

const (
	netnsDir    = "/run/netns"
	etcdPort    = 2379
	meshPort    = 4243
	apiPort     = 4244
	firstNodeIP = 10 // node n has this plus n

	sharedEtcdIP   = 3
	sharedEtcdName = "etcd"
	underlayMTU    = 1500
)

// names derives every name and path of a lab from its own name.
type names struct{ lab string }

func (n names) nsPrefix() string         { return "hwl-" + n.lab + "-" }
func (n names) ns(what string) string    { return n.nsPrefix() + what }
func (n names) netns(what string) string { return filepath.Join(netnsDir, n.ns(what)) }
func (n names) dir(parts ...string) string {
	return filepath.Join(append([]string{RunDir, n.lab}, parts...)...)
}
func (n names) lock() string           { return filepath.Join(RunDir, "."+n.lab+".lock") }
func (n names) stateFile() string      { return n.dir("state.json") }
func (n names) cgroupName() string     { return "hawser-lab-" + n.lab }
func (n names) log(proc string) string { return n.dir("log", proc+".log") }

// ContextName is the name of a lab's CLI context.
func ContextName(lab string) string { return "lab-" + lab }

// OfContext is the lab of a CLI context; not ok when the context is no lab's.
func OfContext(context string) (lab string, ok bool) {
	lab, ok = strings.CutPrefix(context, ContextName(""))
	return lab, ok && CheckName(lab) == nil
}

// Node is one node of the plan.
type Node struct {
	Cluster string       `json:"cluster"`
	Name    string       `json:"name"`
	Address netip.Addr   `json:"address"`
	PodCIDR netip.Prefix `json:"podCIDR"`
	// PodCIDR6 is invalid in a lab without IPv6.
	PodCIDR6 netip.Prefix `json:"podCIDR6,omitzero"`
	Netns    string       `json:"netns"`
	Socket   string       `json:"socket"`
	PinPath  string       `json:"pinPath"`
}

// Cluster is one cluster of the plan.
type Cluster struct {
	ClusterSpec
	Control  netip.Addr `json:"control"` // of the API server
	Gateway  netip.Addr `json:"gateway"` // of the fabric
	Netns    string     `json:"netns"`   // of the API server
	Socket   string     `json:"socket"`
	DataDir  string     `json:"dataDir"`
	AdminTLS string     `json:"adminTLS"`
	Members  []Node     `json:"members"`
	// Etcd is the address of the etcd that all clusters share; not valid when
	// each has its own.
	Etcd netip.Addr `json:"etcd,omitzero"`
}

// EtcdEndpoint is the URL of the cluster's etcd.
func (c Cluster) EtcdEndpoint() string {
	at := c.Control
	if c.Etcd.IsValid() {
		at = c.Etcd
	}
	return fmt.Sprintf("https://%s", netip.AddrPortFrom(at, etcdPort))
}

// plan derives addresses and paths of all clusters of a completed spec.
func plan(s Spec) []Cluster {
	n := names{s.Name}
	var out []Cluster
	for _, cs := range s.Clusters {
		c := Cluster{
			ClusterSpec: cs,
			Gateway:     nth(cs.NodeCIDR, 1),
			Control:     nth(cs.NodeCIDR, 2),
			Netns:       n.netns(cs.Name + "-ctl"),
			Socket:      n.dir(cs.Name, "apiserver.sock"),
			DataDir:     n.dir(cs.Name, "data"),
			AdminTLS:    n.dir(cs.Name, "admin-tls"),
		}
		if s.SharedEtcd { // it is a neighbour of the first cluster's API server
			c.Etcd = nth(s.Clusters[0].NodeCIDR, sharedEtcdIP)
		}
		for i := 1; i <= cs.Nodes; i++ {
			name := cs.NodeName(i)
			c.Members = append(c.Members, Node{
				Cluster: cs.Name, Name: name,
				Address: nth(cs.NodeCIDR, firstNodeIP+i),
				PodCIDR: netip.PrefixFrom(nth(cs.PodCIDR, i<<8), 24), PodCIDR6: cs.nodePods6(i),
				Netns:   n.netns(name),
				Socket:  n.dir(name, "agent.sock"),
				PinPath: n.dir("bpf", name),
			})
		}
		out = append(out, c)
	}
	return out
}

// nth is the n-th address of an IPv4 prefix.
func nth(p netip.Prefix, n int) netip.Addr {
	a := p.Masked().Addr().As4()
	v := uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3])
	v += uint32(n)
	out := netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
	if out.Compare(netipx.PrefixLastIP(p)) > 0 {
		return netip.Addr{}
	}
	return out
}

// findNode finds a node of the plan by name.
func findNode(clusters []Cluster, name string) (Cluster, Node, bool) {
	for _, c := range clusters {
		for _, n := range c.Members {
			if n.Name == name {
				return c, n, true
			}
		}
	}
	return Cluster{}, Node{}, false
}

// findCluster finds a cluster of the plan by name.
func findCluster(clusters []Cluster, name string) (Cluster, error) {
	var have []string
	for _, c := range clusters {
		if c.Name == name {
			return c, nil
		}
		have = append(have, c.Name)
	}
	return Cluster{}, fmt.Errorf("no cluster %q in the lab, there are: %s", name, strings.Join(have, ", "))
}
