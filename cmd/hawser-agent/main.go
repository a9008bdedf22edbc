// SPDX-License-Identifier: Apache-2.0

// Hawser-agent is the agent of a node.
package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/agent"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/internal/program"
	"github.com/hawser-mesh/hawser/policy"
)

// garbagePercent is how much garbage an agent may hold beside what it knows: its
// tables change slowly, and the node's memory is for its workloads. The
// environment variable GOGC says otherwise.
const garbagePercent = 30

func main() { os.Exit(program.Main(newCommand())) }

func newCommand() *cobra.Command {
	var opts program.Options
	var cfg agent.Config
	var address, pods, mapSizes, attach string
	var masquerade bool
	cmd := &cobra.Command{
		Use:   "hawser-agent",
		Short: "Run the agent of a node: endpoints, datapath, policy, load balancing",
		Long: "Run the agent of a node: endpoints, datapath, policy, load balancing.\n" +
			"When it ends, traffic goes on: programs and maps stay pinned and the next agent\n" +
			"takes them over.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := opts.Logger(os.Stderr)
			if err != nil {
				return err
			}
			if os.Geteuid() != 0 {
				return errors.New("the agent loads programs into the kernel: run it as root")
			}
			switch mapSizes {
			case "default", "small":
				cfg.SmallMaps = mapSizes == "small"
			default:
				return fmt.Errorf("--map-sizes %q: must be default or small", mapSizes)
			}
			switch attach {
			case "auto":
			case loader.AttachTCX, loader.AttachClsact:
				cfg.Attach = attach
			default:
				return fmt.Errorf("--attach %q: must be auto, tcx or clsact", attach)
			}
			cfg.Log = log
			cfg.KeepPodAddresses = !masquerade
			// What does not parse stays invalid, and Validate names the flag.
			cfg.NodeAddress, _ = netip.ParseAddr(address)
			if err := podCIDRs(&cfg, pods); err != nil {
				return err
			}
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(garbagePercent)
			}
			return agent.Run(cmd.Context(), cfg)
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Join, "join", "", "enrol by this token, or by the one in @FILE, made by hawser node invite NODE; needed once")
	f.StringVar(&cfg.Cluster, "cluster", "", "name of this node's cluster (default: as enrolled)")
	f.StringVar(&cfg.Node, "node", "", "name of this node, unique in its cluster (default: as enrolled)")
	f.StringSliceVar(&cfg.EtcdEndpoints, "etcd-endpoint", nil, "https://ADDRESS:PORT of the cluster's etcd (default: as enrolled)")
	f.StringVar(&cfg.TLSDir, "tls-dir", "/etc/hawser/tls", "directory of ca.crt, tls.crt and tls.key of this node and of its enrolment")
	f.StringVar(&cfg.EtcdTLSDir, "etcd-tls-dir", "", "the same for an external etcd, of its own CA, common name CLUSTER-agent (default: etcd is the API server's)")
	f.BoolVar(&cfg.SharedEtcd, "shared-etcd", false, "other clusters keep their keys in the same external etcd")
	f.StringVar(&cfg.UnderlayDevice, "underlay-device", "", "device that connects the nodes")
	f.StringVar(&address, "node-address", "", "IPv4 address of the underlay device; also the tunnel endpoint")
	f.StringVar(&pods, "pod-cidr", "", "range of this node's pods, part of the cluster's; IPV4,IPV6 if they are to have addresses of both families (default: the cluster gives the node what it has)")
	f.Uint32Var(&cfg.ClusterBits, "cluster-bits", 0, "bits of an identity that name the cluster, as the API server was told (default: as enrolled, else 8)")
	f.Uint16Var(&cfg.TunnelPort, "tunnel-port", 0, "UDP port of VXLAN, the same in the whole mesh (default: as enrolled, else 8472)")
	f.StringVar(&cfg.TunnelDatapath, "tunnel-datapath", agent.TunnelAuto, "who makes the tunnel's headers: netdev (the kernel's VXLAN device), ebpf (the programs), or auto for netdev where the kernel has the device and the underlay is no veth")
	f.StringVar(&cfg.StateDir, "state-dir", "/var/lib/hawser", "directory for what must survive a restart")
	f.StringVar(&cfg.Socket, "socket", "/run/hawser/agent.sock", "unix socket of the node API")
	f.StringVar(&cfg.PinPath, "pin-path", "", "directory in a bpffs for this agent's programs and maps (default: /sys/fs/bpf/hawser/NODE)")
	f.StringVar(&attach, "attach", "auto", "how programs are put on devices: tcx, clsact, or auto for tcx where the kernel has it")
	f.StringVar(&cfg.CgroupRoot, "cgroup-root", agent.CgroupAuto, "cgroup2 directory of the processes whose services are balanced at the socket: a path, auto for the root of all, or off")
	f.BoolVar(&masquerade, "masquerade", true, "give what pods send out of the underlay device to the outside the node's address there, of IPv4, and of IPv6 if the device has one")
	f.StringVar(&mapSizes, "map-sizes", "default", "default, or small for many agents on one machine")
	f.StringSliceVar(&cfg.Labels, "labels", nil, "which labels make an identity: [!][SOURCE:]PREFIX,… (default: all but those that differ from pod to pod)")
	f.StringVar((*string)(&cfg.PolicyScope), "policy-default-scope", string(policy.ScopeLocal), "what a selector means that names no cluster: local or mesh")
	f.StringVar((*string)(&cfg.PolicyMode), "policy-enforcement", string(policy.ModeDefault), "default: for endpoints that a policy selects; always: for all; never: for none")
	f.BoolVar(&cfg.PolicyAudit, "policy-audit", false, "report what policy would drop, and let it pass")
	f.StringVar(&cfg.MetricsListen, "metrics-listen", agent.DefaultMetrics, "ADDRESS:PORT of /metrics and /healthz; empty for none")
	f.StringVar(&cfg.DNSListen, "dns-listen", "", "ADDRESS:PORT of the name server of pods; off for none (default: port 53 of --node-address)")
	f.StringSliceVar(&cfg.DNSUpstreams, "dns-upstream", nil, "ADDRESS[:PORT] of the resolvers for names outside the mesh (default: those of /etc/resolv.conf)")
	f.StringVar(&cfg.Zone, "zone", "", "zone of this node")
	f.StringVar(&cfg.Region, "region", "", "region of this node")
	opts.Bind(cmd, "HAWSER_AGENT")
	return cmd
}

// podCIDRs sorts the ranges of the node's pods by family.
func podCIDRs(cfg *agent.Config, list string) error {
	if list == "" {
		return nil
	}
	for text := range strings.SplitSeq(list, ",") {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return fmt.Errorf("--pod-cidr %q: must be a prefix like 10.1.2.0/24", text)
		}
		to := &cfg.PodCIDR
		if p.Addr().Is6() {
			to = &cfg.PodCIDR6
		}
		if to.IsValid() {
			return fmt.Errorf("--pod-cidr %s: a node has at most one range of each family, and it has %s", p, *to)
		}
		*to = p
	}
	return nil
}
