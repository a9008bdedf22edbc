// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/hawser-mesh/hawser/identity"
)

// DefaultName is the lab that commands mean when none is named.
const DefaultName = "lab"

// Spec is what a lab should be, as its YAML file says.
type Spec struct {
	Name     string        `json:"name,omitempty"`
	Clusters []ClusterSpec `json:"clusters"`
	// SharedEtcd has all clusters keep their keys in one etcd, each with its own
	// credentials, instead of one each with mirrors of the others.
	SharedEtcd bool `json:"sharedEtcd,omitempty"`
	// IPv6 gives pods and services addresses of both families.
	IPv6 bool `json:"ipv6,omitempty"`
	// ClusterBits is how many bits of an identity name the cluster; 0 means 8.
	ClusterBits uint32 `json:"clusterBits,omitempty"`
	// APIServer and Agent are further settings of these programs, as flag and
	// value: {expire-after: 1h}. In those of API servers {data-dir} stands for the
	// cluster's directory.
	APIServer map[string]string `json:"apiServer,omitempty"`
	Agent     map[string]string `json:"agent,omitempty"`
}

// ClusterSpec is one cluster. What is left empty is filled in from the id:
// 10.<id>.0.0/16 for pods, with a /24 per node, 172.31.<id>.0/24 for services and
// 172.30.<id>.0/24 for nodes; of ids above 255 the low 8 bits. With IPv6, pods have
// fd00:10:<id>::/48 too, a /64 per node, and services fd00:172:<id>::/112.
type ClusterSpec struct {
	Name        string       `json:"name,omitempty"`
	ID          uint32       `json:"id,omitempty"`
	Nodes       int          `json:"nodes,omitempty"` // how many; 0 means 2
	PodCIDR     netip.Prefix `json:"podCIDR,omitzero"`
	ServiceCIDR netip.Prefix `json:"serviceCIDR,omitzero"`
	NodeCIDR    netip.Prefix `json:"nodeCIDR,omitzero"`
	// PodCIDR6 and ServiceCIDR6 are for labs with IPv6.
	PodCIDR6     netip.Prefix `json:"podCIDR6,omitzero"`
	ServiceCIDR6 netip.Prefix `json:"serviceCIDR6,omitzero"`
	Pods         []PodSpec    `json:"pods,omitempty"`
	// Agent are settings of this cluster's agents, before those of Spec.Agent.
	Agent map[string]string `json:"agent,omitempty"`
}

// PodSpec is one pod.
type PodSpec struct {
	Name      string            `json:"name"`
	Namespace string            `json:"namespace,omitempty"` // "" means default
	Node      string            `json:"node,omitempty"`      // "" means the cluster's first
	Labels    map[string]string `json:"labels,omitempty"`
	// NamespaceLabels are those of its namespace.
	NamespaceLabels map[string]string `json:"namespaceLabels,omitempty"`
	// Ports are its names for ports, as NAME=PORT or NAME=PORT/PROTOCOL.
	Ports []string `json:"ports,omitempty"`
	// Command is what runs in it; empty means a process that only waits.
	Command []string `json:"command,omitempty"`
}

// What the plan of addresses has room for: the id of a cluster is a byte of its
// ranges, that of a node one of its address.
const (
	MaxClusters = 255
	MaxNodes    = 200 // of a cluster
)

const defaultNodes = 2

// NewSpec is a lab of equal clusters.
func NewSpec(name string, clusters, nodes int) Spec {
	s := Spec{Name: name}
	for range clusters {
		s.Clusters = append(s.Clusters, ClusterSpec{Nodes: nodes})
	}
	return s
}

// LoadSpec reads a YAML file. Unknown fields are refused.
func LoadSpec(path string) (Spec, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Spec{}, fmt.Errorf("read lab file: %w", err)
	}
	var s Spec
	if err := yaml.UnmarshalStrict(data, &s); err != nil {
		return Spec{}, fmt.Errorf("read lab file %s: %w", path, err)
	}
	return s, nil
}

// Complete fills in what was left empty and checks the whole; the error joins
// all problems.
func (s Spec) Complete() (Spec, error) {
	if s.Name == "" {
		s.Name = DefaultName
	}
	out := s
	if out.ClusterBits == 0 {
		out.ClusterBits = identity.DefaultClusterBits
	}
	out.Clusters = nil
	for i, c := range s.Clusters {
		out.Clusters = append(out.Clusters, c.withDefaults(i, s.IPv6))
	}
	return out, out.validate()
}

// clusterName is the default name of the i-th cluster, from 0.
func clusterName(i int) string {
	names := [...]string{"east", "west", "north", "south"}
	if i < len(names) {
		return names[i]
	}
	return fmt.Sprintf("c%d", i+1)
}

func (c ClusterSpec) withDefaults(i int, ipv6 bool) ClusterSpec {
	if c.Name == "" {
		c.Name = clusterName(i)
	}
	if c.ID == 0 {
		c.ID = uint32(i + 1)
	}
	if c.Nodes == 0 {
		c.Nodes = defaultNodes
	}
	id := byte(c.ID) // ranges that overlap are refused
	if !c.PodCIDR.IsValid() {
		c.PodCIDR = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, id, 0, 0}), 16)
	}
	if !c.ServiceCIDR.IsValid() {
		c.ServiceCIDR = netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 31, id, 0}), 24)
	}
	if !c.NodeCIDR.IsValid() {
		c.NodeCIDR = netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 30, id, 0}), 24)
	}
	if ipv6 {
		c = c.withIPv6()
	}
	pods := make([]PodSpec, len(c.Pods))
	for i, p := range c.Pods {
		pods[i] = p.withDefaults(c)
	}
	c.Pods = pods
	return c
}

func (p PodSpec) withDefaults(c ClusterSpec) PodSpec {
	if p.Namespace == "" {
		p.Namespace = "default"
	}
	if p.Node == "" {
		p.Node = c.NodeName(1)
	}
	return p
}

// NodeName is the name of the n-th node, from 1.
func (c ClusterSpec) NodeName(n int) string { return fmt.Sprintf("%s-%d", c.Name, n) }

// Names become parts of namespace, device and cgroup names. Without a '-' in
// the lab's, no lab's names are a prefix of another's.
var (
	labName     = regexp.MustCompile(`^[a-z][a-z0-9]{0,11}$`)
	clusterRule = regexp.MustCompile(`^[a-z][a-z0-9]{0,10}$`)
	settingName = regexp.MustCompile(`^[a-z][-a-z0-9]*$`)
	podName     = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,30}[a-z0-9])?$`)
)

func (s Spec) validate() error {
	var errs []error
	if err := CheckName(s.Name); err != nil {
		errs = append(errs, err)
	}
	space, err := identity.NewSpace(s.ClusterBits)
	if err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, s.checkSettings()...)
	if len(s.Clusters) == 0 {
		errs = append(errs, errors.New("no clusters"))
	}
	names, ids := map[string]bool{}, map[uint32]bool{}
	var ranges []ownedPrefix
	for _, c := range s.Clusters {
		if s.SharedEtcd && c.Name == sharedEtcdName {
			errs = append(errs, fmt.Errorf("cluster %s: that is the name of the shared etcd", c.Name))
		}
		if names[c.Name] {
			errs = append(errs, fmt.Errorf("cluster %s: the name is taken", c.Name))
		}
		if ids[c.ID] {
			errs = append(errs, fmt.Errorf("cluster %s: id %d is taken", c.Name, c.ID))
		}
		if err == nil && c.ID > space.MaxCluster() {
			errs = append(errs, fmt.Errorf("cluster %s: id %d is above %d, the highest with %d cluster bits", c.Name, c.ID, space.MaxCluster(), s.ClusterBits))
		}
		names[c.Name], ids[c.ID] = true, true
		errs = append(errs, c.validate()...)
		errs = append(errs, c.checkIPv6(s.IPv6)...)
		for what, p := range map[string]netip.Prefix{
			"podCIDR": c.PodCIDR, "serviceCIDR": c.ServiceCIDR, "nodeCIDR": c.NodeCIDR, "podCIDR6": c.PodCIDR6, "serviceCIDR6": c.ServiceCIDR6,
		} {
			for _, o := range ranges {
				if o.prefix.Overlaps(p) {
					errs = append(errs, fmt.Errorf("cluster %s: %s %s overlaps %s of %s", c.Name, what, p, o.what, o.cluster))
				}
			}
			ranges = append(ranges, ownedPrefix{c.Name, what, p})
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("lab %q cannot be made:\n%w", s.Name, err)
	}
	return nil
}

// checkSettings checks names only: which flags there are the programs know.
func (s Spec) checkSettings() []error {
	var errs []error
	check := func(program string, settings map[string]string) {
		for name := range settings {
			if !settingName.MatchString(name) {
				errs = append(errs, fmt.Errorf("%s: %q is not the name of a flag", program, name))
			}
		}
	}
	check("apiServer", s.APIServer)
	check("agent", s.Agent)
	for _, c := range s.Clusters {
		check("agent of cluster "+c.Name, c.Agent)
	}
	return errs
}

// flags are settings as arguments, in a fixed order.
func flags(settings map[string]string) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		out = append(out, "--"+name+"="+settings[name])
	}
	return out
}

type ownedPrefix struct {
	cluster, what string
	prefix        netip.Prefix
}

// CheckName says whether a lab may have that name.
func CheckName(name string) error {
	if !labName.MatchString(name) {
		return fmt.Errorf("lab name %q: a letter, then at most 11 letters and digits, all lower case", name)
	}
	return nil
}

func (c ClusterSpec) validate() []error {
	var errs []error
	problem := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("cluster %s: "+format, append([]any{c.Name}, args...)...))
	}
	if !clusterRule.MatchString(c.Name) {
		problem("a name is a letter, then at most 10 letters and digits, all lower case")
	}
	if c.Nodes < 1 || c.Nodes > MaxNodes {
		problem("%d nodes: 1 to %d are possible", c.Nodes, MaxNodes)
	}
	for _, r := range []struct {
		what   string
		prefix netip.Prefix
		bits   int // at most
		why    string
	}{
		{"podCIDR", c.PodCIDR, 16, ", for a /24 per node"},
		{"serviceCIDR", c.ServiceCIDR, 29, ""},
		{"nodeCIDR", c.NodeCIDR, 24, ""},
	} {
		switch {
		case !r.prefix.Addr().Is4() || r.prefix.Bits() > r.bits:
			problem("%s %s: an IPv4 range of at least a /%d is needed%s", r.what, r.prefix, r.bits, r.why)
		case r.prefix != r.prefix.Masked():
			problem("%s %s: it has bits behind its length; %s has none", r.what, r.prefix, r.prefix.Masked())
		}
	}
	seen := map[string]bool{"ctl": true}
	for _, p := range c.Pods {
		if err := c.checkPod(p); err != nil {
			problem("%w", err)
		}
		if seen[p.Name] {
			problem("pod %s: the name is taken (names are unique in a cluster of a lab)", p.Name)
		}
		seen[p.Name] = true
	}
	return errs
}

func (c ClusterSpec) checkPod(p PodSpec) error {
	if !podName.MatchString(p.Name) || !podName.MatchString(p.Namespace) {
		return fmt.Errorf("pod %s/%s: names are lower case letters, digits and '-', at most 32", p.Namespace, p.Name)
	}
	if _, err := cniPorts(p.Ports); err != nil {
		return fmt.Errorf("pod %s: %w", p.Name, err)
	}
	var nodes []string
	for n := 1; n <= c.Nodes; n++ {
		if c.NodeName(n) == p.Node {
			return nil
		}
		nodes = append(nodes, c.NodeName(n))
	}
	return fmt.Errorf("pod %s: no node %q, there are: %s", p.Name, p.Node, strings.Join(nodes, ", "))
}
