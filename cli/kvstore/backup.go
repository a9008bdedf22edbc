// SPDX-License-Identifier: Apache-2.0

package kvstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

const (
	chunkBytes   = 1 << 20
	restartPoll  = 100 * time.Millisecond
	restartLimit = 60 * time.Second
)

func newBackup(s *session.Session) *cobra.Command {
	return &cobra.Command{
		Use:   "backup FILE",
		Short: "Write a snapshot of the whole etcd to a file",
		Long: "Write a snapshot of the whole etcd to a file, through the API server, in the format of\n" +
			"etcdctl. It holds secrets: keys of peers, tokens. The API server also takes snapshots\n" +
			"by itself (--snapshot-dir).",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, conn, err := s.Mesh()
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			stream, err := client.Backup(cmd.Context(), &hawserv1.BackupRequest{})
			if err != nil {
				return err
			}
			size := uint64(0)
			if err := replaceFile(args[0], func(w io.Writer) error {
				for {
					c, err := stream.Recv()
					if errors.Is(err, io.EOF) {
						return nil
					}
					if err != nil {
						return err
					}
					size += uint64(len(c.GetData()))
					if _, err := w.Write(c.GetData()); err != nil {
						return err
					}
				}
			}); err != nil {
				return err
			}
			return report(cmd, s, map[string]any{"file": args[0], "bytes": size}, fmt.Sprintf("Wrote %s to %s.", printer.Bytes(size), args[0]))
		},
	}
}

func newRestore(s *session.Session) *cobra.Command {
	var write bool
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Replace the whole etcd by a snapshot's content",
		Long: "Replace the whole etcd by a snapshot's content, through the API server, which starts\n" +
			"anew on it within a second or two. All that was written since the snapshot is gone; the\n" +
			"former data is kept beside the new. Agents keep what they know and publish their own\n" +
			"records again; nothing is believed to be gone until all have. An etcd of three members\n" +
			"is restored while it is stopped: hawser-apiserver restore --help.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needWrite(write, "restore replaces all that the cluster's etcd holds"); err != nil {
				return err
			}
			f, err := os.Open(args[0])
			if err != nil {
				return session.Usage("%v", err)
			}
			defer f.Close()
			client, conn, err := s.Mesh()
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			r, err := upload(cmd.Context(), client, f, args[0])
			if err != nil {
				return err
			}
			if err := restarted(cmd.Context(), client, r.GetIncarnation()); err != nil {
				return err
			}
			return report(cmd, s, map[string]any{"incarnation": r.GetIncarnation(), "keys": r.GetKeys(), "revision": r.GetRevision()},
				fmt.Sprintf("Restored %s keys (all of etcd's, of revision %d). New incarnation: %s.", printer.Count(r.GetKeys()), r.GetRevision(), r.GetIncarnation()))
		},
	}
	cmd.Flags().BoolVar(&write, "write", false, "really do it")
	return cmd
}

func upload(ctx context.Context, client hawserv1.MeshClient, f io.Reader, name string) (*hawserv1.RestoreResponse, error) {
	stream, err := client.Restore(ctx)
	if err != nil {
		return nil, err
	}
	if stream.Send(&hawserv1.RestoreChunk{Name: name}) != nil {
		return stream.CloseAndRecv() // tells why
	}
	buf := make([]byte, chunkBytes)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			if serr := stream.Send(&hawserv1.RestoreChunk{Data: buf[:n]}); serr != nil {
				break // CloseAndRecv tells why
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return stream.CloseAndRecv()
}

// restarted waits until the API server serves the restored store.
func restarted(ctx context.Context, client hawserv1.MeshClient, incarnation string) error {
	ctx, cancel := context.WithTimeout(ctx, restartLimit)
	defer cancel()
	last := errors.New("no answer")
	for {
		st, err := client.ClusterStatus(ctx, &hawserv1.ClusterStatusRequest{})
		if err == nil && st.GetIncarnation() == incarnation {
			return nil
		}
		if err != nil && ctx.Err() == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return &session.Error{Code: session.CouldNotAsk, Err: fmt.Errorf("the API server did not come back on the restored data (%w): see its log", last)}
		case <-time.After(restartPoll):
		}
	}
}
