// SPDX-License-Identifier: Apache-2.0

package kvstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/inspect"
)

// change is one event as it is shown.
type change struct {
	Time    time.Time `json:"time"` // when it arrived here
	Deleted bool      `json:"deleted"`
	inspect.Entry
}

var errEnough = errors.New("seen as many changes as were asked for")

func newWatch(s *session.Session) *cobra.Command {
	var from int64
	var count int
	cmd := &cobra.Command{
		Use:   "watch [PREFIX]",
		Short: "Show changes as they happen",
		Long: "Show changes as they happen, decoded, until interrupted. JSON output is one object a\n" +
			"line. Without a prefix it watches state/, which all clusters' public records are below.",
		Example: "  hawser kvstore watch state/east/ips\n" +
			"  hawser kvstore watch local/east --from 4711 -o json",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if from < 0 || count < 0 {
				return session.Usage("--from and --count must not be negative")
			}
			prefix := kvstore.SubtreePrefix(kvstore.State)
			if len(args) > 0 {
				prefix = directory(args)
			}
			client, cl, err := connect(s)
			if err != nil {
				return err
			}
			defer func() { _ = client.Close() }()
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return watch(ctx, client, cl.Name, cmd.OutOrStdout(), s.Output, prefix, from, count)
		},
	}
	cmd.Flags().Int64Var(&from, "from", 0, "revision to begin with; 0 is the next change")
	cmd.Flags().IntVar(&count, "count", 0, "end after so many changes; 0 is never")
	return cmd
}

func watch(ctx context.Context, c kvstore.Client, own string, w io.Writer, f printer.Format, prefix string, from int64, count int) error {
	if from == 0 {
		_, rev, err := c.Get(ctx, prefix)
		if err != nil {
			return explain(own, err)
		}
		from = rev + 1
	}
	seen, next := 0, from
	err := c.Watch(ctx, prefix, from, func(b kvstore.WatchBatch) error {
		for _, ev := range b.Events {
			if err := showChange(w, f, ev); err != nil {
				return err
			}
			if seen++; seen == count {
				return errEnough
			}
		}
		next = max(next, b.Revision+1)
		return nil
	})
	switch {
	case errors.Is(err, errEnough), ctx.Err() != nil:
		return nil
	case errors.Is(err, kvstore.ErrCompacted):
		return session.Answer("the history from revision %d on is gone (etcd keeps about 30 minutes of it): watch without --from, or list: hawser kvstore ls %s", from, short(prefix))
	case errors.Is(err, kvstore.ErrFutureRevision):
		return session.Answer("%w: was it restored from a backup? Watch without --from", err)
	case errors.Is(err, kvstore.ErrDenied):
		return explain(own, err)
	}
	return &session.Error{Code: session.CouldNotAsk, Err: fmt.Errorf("%w\nnothing before revision %d is missing above; go on with: hawser kvstore watch %s --from %d", err, next, short(prefix), next)}
}

func showChange(w io.Writer, f printer.Format, ev kvstore.Event) error {
	c := change{Time: time.Now().UTC(), Deleted: ev.Deleted, Entry: inspect.Decode(ev.KV, kvstore.Limits{})}
	if ev.Deleted {
		c.Record, c.Problem = json.RawMessage("null"), ""
	}
	switch f {
	case printer.JSON:
		return json.NewEncoder(w).Encode(c)
	case printer.YAML:
		if _, err := fmt.Fprintln(w, "---"); err != nil {
			return err
		}
		return printer.Encode(w, f, c)
	}
	verb, text := "put", content(c.Entry)
	if c.Deleted {
		verb, text = "del", ""
	}
	_, err := fmt.Fprintf(w, "%s  %d  %s  %s  %s\n", c.Time.Local().Format("15:04:05.000"), c.ModRevision, verb, short(c.Key), text)
	return err
}
