// SPDX-License-Identifier: Apache-2.0

// Hawser is the operator's command line.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/hawser-mesh/hawser/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := cli.New(os.Args[0]).ExecuteContext(ctx)
	stop()
	os.Exit(cli.Report(os.Stderr, err))
}
