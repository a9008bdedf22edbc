// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/lab"
)

func newExec(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "exec TARGET -- COMMAND [ARG…]",
		Short: "Run any program in a pod, on a node, or in the fabric",
		Long: "TARGET is CLUSTER/POD, a node (east-1), CLUSTER/ctl (the cluster's API server) or\n" +
			"fabric (the network between all nodes). Streams, signals and exit code are the\n" +
			"program's own.",
		Example: "  hawser lab exec east/client -- curl http://echo.demo.mesh\n" +
			"  hawser lab exec fabric -- tcpdump -ni any udp port 8472",
		Args: cobra.MinimumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := o.open()
			if err != nil {
				return err
			}
			if err := l.Find(args[0]); err != nil {
				return err // as `lab rm` does
			}
			argv := args[1:]
			if argv[0] == "--" {
				argv = argv[1:]
			}
			if err := l.Exec(args[0], argv); err != nil {
				return &session.Error{Code: session.CouldNotAsk, Err: err}
			}
			return nil
		},
	}
	// What comes after the target is the program's, also without "--".
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func newRun(o *options) *cobra.Command {
	var labels, namespaceLabels map[string]string
	var namespace string
	var ports []string
	cmd := &cobra.Command{
		Use:   "run CLUSTER/POD [-- COMMAND [ARG…]]",
		Short: "Add a pod to a running lab",
		Example: "  hawser lab run east/web --namespace demo --label app=web -- python3 -m http.server 80\n" +
			"  hawser lab run east/named --port http=8080/tcp -- python3 -m http.server 8080\n" +
			"  hawser lab run west/probe --node west-2",
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cluster, pod, err := splitPod(args[0])
			if err != nil {
				return err
			}
			l, err := o.open()
			if err != nil {
				return err
			}
			p, err := lab.AddPod(cmd.Context(), l.Name(), cluster, lab.PodSpec{
				Name: pod, Namespace: namespace, Node: o.Node, Labels: labels, NamespaceLabels: namespaceLabels, Ports: ports, Command: args[1:],
			})
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), strings.Join(p.Addresses, " "))
			return nil
		},
	}
	cmd.Flags().StringToStringVarP(&labels, "label", "l", nil, "label of the pod, KEY=VALUE; may be repeated")
	cmd.Flags().StringToStringVar(&namespaceLabels, "namespace-label", nil, "label of the pod's namespace, KEY=VALUE, which policy may select by; may be repeated")
	cmd.Flags().StringSliceVar(&ports, "port", nil, "the pod's name for a port, NAME=PORT/PROTOCOL, which policy may use; may be repeated")
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of the pod")
	return cmd
}

func newRemove(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "rm CLUSTER/POD",
		Short: "Remove a pod from a running lab",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cluster, pod, err := splitPod(args[0])
			if err != nil {
				return err
			}
			l, err := o.open()
			if err != nil {
				return err
			}
			return lab.DeletePod(cmd.Context(), l.Name(), cluster, pod)
		},
	}
}

func splitPod(s string) (cluster, pod string, err error) {
	cluster, pod, ok := strings.Cut(s, "/")
	if !ok || cluster == "" || pod == "" {
		return "", "", session.Usage("%q: give CLUSTER/POD, such as east/client", s)
	}
	return cluster, pod, nil
}
