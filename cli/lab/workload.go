// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/lab"
)

// newWorkload is what pods of the lab run. It is hidden: nobody types it.
func newWorkload() *cobra.Command {
	cmd := &cobra.Command{Use: "workload", Short: "What pods of a lab run", Hidden: true}
	cmd.AddCommand(newPause(), newEcho(), newGet(), newLoadServer(), newLoadClient(), newDial())
	return cmd
}

// untilSignal ends with SIGTERM or SIGINT.
func untilSignal(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
}

func newPause() *cobra.Command {
	return &cobra.Command{
		Use: "pause", Short: "Wait for the end", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := untilSignal(cmd)
			defer stop()
			<-ctx.Done()
			return nil
		},
	}
}

func newEcho() *cobra.Command {
	var cluster, node, pod, listen string
	cmd := &cobra.Command{
		Use: "echo", Short: "Answer HTTP with who answers", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := untilSignal(cmd)
			defer stop()
			var lc net.ListenConfig
			lc.SetMultipathTCP(false)
			lis, err := lc.Listen(ctx, "tcp", listen)
			if err != nil {
				return fmt.Errorf("listen: %w", err)
			}
			srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprintf(w, "cluster=%s node=%s pod=%s client=%s\n", cluster, node, pod, r.RemoteAddr)
			})}
			defer context.AfterFunc(ctx, func() { _ = srv.Close() })()
			if err := srv.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve: %w", err)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&cluster, "cluster-name", "", "cluster to name in answers")
	f.StringVar(&node, "node-name", "", "node to name in answers")
	f.StringVar(&pod, "pod-name", "", "pod to name in answers")
	f.StringVar(&listen, "listen", ":8080", "address")
	return cmd
}

func newGet() *cobra.Command {
	var count int
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "get URL", Short: "Ask `workload echo`, each time on a new connection, and count who answered", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			d := net.Dialer{Timeout: timeout}
			d.SetMultipathTCP(false)
			client := &http.Client{Timeout: timeout, Transport: &http.Transport{DisableKeepAlives: true, DialContext: d.DialContext}}
			a := lab.Answers{By: map[string]int{}}
			for range count {
				cluster, err := getOnce(cmd.Context(), client, args[0])
				if err != nil {
					a.Failed++
					a.Error = err.Error()
					continue
				}
				a.OK++
				a.By[cluster]++
			}
			if err := json.NewEncoder(cmd.OutOrStdout()).Encode(a); err != nil {
				return fmt.Errorf("print: %w", err)
			}
			if a.Failed > 0 {
				return session.Answer("%d of %d requests failed, last: %s", a.Failed, count, a.Error)
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&count, "count", 1, "number of requests")
	cmd.Flags().DurationVar(&timeout, "request-timeout", 2*time.Second, "for each request")
	return cmd
}

func getOnce(ctx context.Context, client *http.Client, url string) (cluster string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	const longest = 4096
	body, err := io.ReadAll(io.LimitReader(resp.Body, longest))
	if err != nil {
		return "", err
	}
	for f := range strings.FieldsSeq(string(body)) {
		if name, ok := strings.CutPrefix(f, "cluster="); ok {
			return name, nil
		}
	}
	return "", fmt.Errorf("%s answered %q, which names no cluster", url, strings.TrimSpace(string(body)))
}

// untilFile ends ctx when the file appears.
func untilFile(ctx context.Context, path string) context.Context {
	if path == "" {
		return ctx
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		const interval = 50 * time.Millisecond
		for ctx.Err() == nil {
			if _, err := os.Stat(path); err == nil {
				return
			}
			time.Sleep(interval)
		}
	}()
	return ctx
}
