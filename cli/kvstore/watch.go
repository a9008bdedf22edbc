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
	// Time is when a change happened: when it arrived here, or, of one that is
	// older than the watch, when its writer says; nil where nobody does.
	Time    *time.Time `json:"time"`
	Deleted bool       `json:"deleted"`
	inspect.Entry
}

var errEnough = errors.New("seen as many changes as were asked for")

func newWatch(s *session.Session) *cobra.Command {
	var from int64
	var count int
	cmd := &cobra.Command{
		Use:   "watch [PREFIX]",
		Short: "Show changes as they happen",
		Long: "Show changes as they happen, decoded, until interrupted or for as long as --timeout\n" +
			"says. JSON output is one object a line. Without a prefix it watches state/, which all\n" +
			"clusters' public records are below. Changes of before (--from) have the time that their\n" +
			"writer gave them, or none. With --count, it answers no (exit code 1) if there were fewer\n" +
			"within --timeout.",
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
			client, cl, err := connect(cmd, s)
			if err != nil {
				return err
			}
			defer func() { _ = client.Close() }()
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			w := watching{client: client, own: cl.Name, out: cmd.OutOrStdout(), format: s.Output, prefix: prefix, count: count, patience: s.Timeout}
			if cmd.Flags().Changed("timeout") {
				w.limit = s.Timeout
			}
			return w.run(ctx, from)
		},
	}
	cmd.Flags().Int64Var(&from, "from", 0, "revision to begin with; 0 is the next change")
	cmd.Flags().IntVar(&count, "count", 0, "end after so many changes; 0 is never")
	return cmd
}

// watching is one watch.
type watching struct {
	client   kvstore.Client
	own      string
	out      io.Writer
	format   printer.Format
	prefix   string
	count    int           // 0: no end
	patience time.Duration // until the watch is established
	limit    time.Duration // 0: none
}

var errSilent = errors.New("etcd does not answer")

func (w watching) run(ctx context.Context, from int64) error {
	_, head, err := w.client.Get(ctx, w.prefix)
	if err != nil {
		return explain(w.own, err)
	}
	if from == 0 {
		from = head + 1
	}
	if w.limit > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, w.limit)
		defer stop()
	}
	watch, silent := context.WithCancelCause(ctx)
	defer silent(nil)
	established := time.AfterFunc(w.patience, func() { silent(errSilent) })
	defer established.Stop()
	seen, next := 0, from
	err = w.client.Watch(watch, w.prefix, from, func(b kvstore.WatchBatch) error {
		established.Stop()
		for _, ev := range b.Events {
			if err := showChange(w.out, w.format, ev, head); err != nil {
				return err
			}
			if seen++; seen == w.count {
				return errEnough
			}
		}
		next = max(next, b.Revision+1)
		return nil
	})
	switch {
	case errors.Is(err, errEnough):
		return nil
	case ctx.Err() != nil:
		if errors.Is(ctx.Err(), context.DeadlineExceeded) && w.count > 0 {
			return session.Answer("%d of %d changes within %s", seen, w.count, printer.Duration(w.limit))
		}
		return nil
	case errors.Is(err, kvstore.ErrCompacted):
		return session.Answer("the history from revision %d on is gone (etcd keeps about 30 minutes of it): watch without --from, or list: hawser kvstore ls %s", from, short(w.prefix))
	case errors.Is(err, kvstore.ErrFutureRevision):
		return session.Answer("%w: was it restored from a backup? Watch without --from", err)
	case errors.Is(err, kvstore.ErrDenied):
		return explain(w.own, err)
	case errors.Is(context.Cause(watch), errSilent):
		err = errSilent
	}
	return &session.Error{Code: session.CouldNotAsk, Err: fmt.Errorf("%w\nnothing before revision %d is missing above; go on with: hawser kvstore watch %s --from %d", err, next, short(w.prefix), next)}
}

// showChange prints a change; those up to revision head happened before the watch
// began.
func showChange(w io.Writer, f printer.Format, ev kvstore.Event, head int64) error {
	c := change{Deleted: ev.Deleted, Entry: inspect.Decode(ev.KV, kvstore.Limits{})}
	if ev.ModRevision > head {
		now := time.Now().UTC()
		c.Time = &now
	} else if at, ok := writtenAt(ev); ok {
		c.Time = &at
	}
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
	at := "-"
	if c.Time != nil {
		at = c.Time.Local().Format("15:04:05.000")
	}
	if c.Time != nil && time.Since(*c.Time) > 12*time.Hour {
		at = c.Time.Local().Format("2006-01-02 15:04")
	}
	_, err := fmt.Fprintf(w, "%-12s  %d  %s  %s  %s\n", at, c.ModRevision, verb, short(c.Key), text)
	return err
}

// writtenAt is when the writer of a record says that it wrote it.
func writtenAt(ev kvstore.Event) (time.Time, bool) {
	if ev.Deleted {
		return time.Time{}, false
	}
	k, err := kvstore.ParseKey(ev.Key)
	if err != nil {
		return time.Time{}, false
	}
	m, err := kvstore.Decode(k, ev.Value)
	if err != nil {
		return time.Time{}, false
	}
	stamped, ok := m.(interface{ GetUpdatedAt() int64 })
	if !ok || stamped.GetUpdatedAt() <= 0 {
		return time.Time{}, false
	}
	return time.Unix(0, stamped.GetUpdatedAt()).UTC(), true
}
