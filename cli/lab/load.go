// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/lab/load"
)

func newLoadServer() *cobra.Command {
	var listen, readyFile string
	cmd := &cobra.Command{
		Use: "load-server", Short: "Answer load-client", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := untilSignal(cmd)
			defer stop()
			return load.Serve(ctx, listen, func(net.Addr) { touch(cmd, readyFile) })
		},
	}
	cmd.Flags().StringVar(&listen, "listen", ":7000", "address, TCP and UDP")
	cmd.Flags().StringVar(&readyFile, "ready-file", "", "file to make when it listens")
	return cmd
}

func newLoadClient() *cobra.Command {
	var cfg load.Config
	var duration time.Duration
	var stopFile, readyFile string
	cmd := &cobra.Command{
		Use:   "load-client HOST:PORT",
		Short: "Send bounded traffic and print what was lost",
		Long: "New TCP connections, one long TCP stream with checked bytes and numbered datagrams,\n" +
			"until --duration, --stop-file or SIGTERM. Prints a JSON report; exit code 1 says that\n" +
			"something was lost, refused, reset or late.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := untilSignal(cmd)
			defer stop()
			if duration > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, duration)
				defer cancel()
			}
			cfg.Target = args[0]
			cfg.Ready = func() { touch(cmd, readyFile) }
			report, bad := load.Run(untilFile(ctx, stopFile), cfg)
			if err := printer.Encode(cmd.OutOrStdout(), printer.JSON, report); err != nil {
				return err
			}
			if bad != nil {
				return &session.Error{Code: session.No, Err: bad}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.IntVar(&cfg.Connections, "connections", 200, "new TCP connections per second")
	f.IntVar(&cfg.Datagrams, "datagrams", 1000, "UDP datagrams per second")
	f.BoolVar(&cfg.Stream, "stream", true, "one long TCP stream")
	f.DurationVar(&cfg.MaxLatency, "max-latency", 900*time.Millisecond, "an answer after this is late")
	f.DurationVar(&cfg.MaxStall, "max-stall", time.Second, "longest time that stream and datagrams may stand still")
	f.DurationVar(&duration, "duration", 0, "how long (default: until told to stop)")
	f.StringVar(&stopFile, "stop-file", "", "end when this file appears")
	f.StringVar(&readyFile, "ready-file", "", "file to make when every kind of load got its first answer")
	return cmd
}

// touch makes a file that tells others; "" is none.
func touch(cmd *cobra.Command, path string) {
	if path == "" {
		return
	}
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "make %s: %v\n", path, err)
	}
}
