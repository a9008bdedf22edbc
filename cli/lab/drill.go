// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/lab"
)

func newDrill(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "drill",
		Short: "Break parts of a lab on purpose",
		Example: "  hawser lab drill kill agent east-1\n" +
			"  hawser lab drill restart apiserver west\n" +
			"  hawser lab drill poweroff east-2\n" +
			"  hawser lab drill cut control east west\n" +
			"  hawser lab drill mtu west-2 1400",
	}
	cmd.AddCommand(
		program(o, "kill", "End a program at once (SIGKILL)", func(c *cobra.Command, l *lab.Lab, k lab.Program, who string) error {
			return l.Kill(c.Context(), k, who)
		}),
		program(o, "stop", "End a program in good order (SIGTERM)", func(c *cobra.Command, l *lab.Lab, k lab.Program, who string) error {
			return l.Stop(c.Context(), k, who)
		}),
		restart(o),
		power(o, "poweroff", "Take the power from a node or a whole cluster: nothing of it is left but its disk", (*lab.Lab).PowerOff),
		power(o, "poweron", "End a poweroff: start it again, and its pods", (*lab.Lab).PowerOn),
		network(o, "cut", "Lose every packet between two clusters", (*lab.Lab).Cut),
		network(o, "heal", "End a cut", (*lab.Lab).Heal),
		mtu(o),
	)
	return cmd
}

// restart may change flags of the program.
func restart(o *options) *cobra.Command {
	var settings map[string]string
	cmd := program(o, "restart", "Start a program again, ending it first if it runs", func(c *cobra.Command, l *lab.Lab, k lab.Program, who string) error {
		return l.RestartWith(c.Context(), k, who, settings)
	})
	cmd.PersistentFlags().StringToStringVar(&settings, "set", nil, "FLAG=VALUE of the program from now on")
	return cmd
}

func program(o *options, verb, short string, act func(*cobra.Command, *lab.Lab, lab.Program, string) error) *cobra.Command {
	cmd := &cobra.Command{Use: verb, Short: short}
	add := func(kind lab.Program, who string) {
		cmd.AddCommand(&cobra.Command{
			Use: string(kind) + " " + who, Short: short + ": the " + string(kind) + " of a " + lower(who), Args: cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				l, err := o.open()
				if err != nil {
					return err
				}
				return act(c, l, kind, args[0])
			},
		})
	}
	add(lab.AgentProgram, "NODE")
	add(lab.APIServerProgram, "CLUSTER")
	return cmd
}

func power(o *options, verb, short string, act func(*lab.Lab, context.Context, string) error) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NODE|CLUSTER", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			l, err := o.open()
			if err != nil {
				return err
			}
			return act(l, c.Context(), args[0])
		},
	}
}

func network(o *options, verb, short string, act func(*lab.Lab, lab.Network, string, string) error) *cobra.Command {
	cmd := &cobra.Command{Use: verb, Short: short}
	add := func(kind lab.Network, what string) {
		cmd.AddCommand(&cobra.Command{
			Use: string(kind) + " CLUSTER CLUSTER", Short: short + ": " + what, Args: cobra.ExactArgs(2),
			RunE: func(_ *cobra.Command, args []string) error {
				l, err := o.open()
				if err != nil {
					return err
				}
				return act(l, kind, args[0], args[1])
			},
		})
	}
	add(lab.ControlNetwork, "only between their API servers")
	add(lab.TunnelNetwork, "only the tunnel between their nodes")
	add(lab.FabricNetwork, "everything")
	return cmd
}

func mtu(o *options) *cobra.Command {
	return &cobra.Command{
		Use: "mtu NODE BYTES", Short: "Lose larger packets on the way to and from a node, silently; 0 ends it", Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			bytes, err := strconv.Atoi(args[1])
			if err != nil {
				return fmt.Errorf("%q is no number of bytes", args[1])
			}
			l, err := o.open()
			if err != nil {
				return err
			}
			return l.SetMTU(args[0], bytes)
		},
	}
}

func lower(who string) string {
	if who == "NODE" {
		return "node"
	}
	return "cluster"
}
