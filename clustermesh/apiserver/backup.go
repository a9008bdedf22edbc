// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

// chunkBytes keeps a message well below gRPC's limit.
const chunkBytes = 1 << 20

// chunks sends what is written to it.
type chunks struct {
	stream grpc.ServerStreamingServer[hawserv1.BackupChunk]
}

func (c chunks) Write(p []byte) (int, error) {
	for at := 0; at < len(p); at += chunkBytes {
		if err := c.stream.Send(&hawserv1.BackupChunk{Data: p[at:min(at+chunkBytes, len(p))]}); err != nil {
			return at, err
		}
	}
	return len(p), nil
}

// Backup streams a snapshot of the embedded etcd.
func (s *Server) Backup(_ *hawserv1.BackupRequest, stream grpc.ServerStreamingServer[hawserv1.BackupChunk]) error {
	if s.etcd == nil {
		return status.Errorf(codes.FailedPrecondition,
			"the etcd of cluster %s is %s, and only its operator has the rights to snapshot it: etcdctl snapshot save; "+
				"or write this cluster's keys with: hawser kvstore export", s.cfg.Cluster, s.cfg.Etcd.mode())
	}
	_, err := s.etcd.Snapshot(stream.Context(), chunks{stream})
	return apiError(err)
}

// Restore takes a snapshot, builds the restored store beside the running one,
// answers, and has the API server begin anew on it.
func (s *Server) Restore(stream grpc.ClientStreamingServer[hawserv1.RestoreChunk, hawserv1.RestoreResponse]) error {
	switch {
	case s.etcd == nil:
		return status.Errorf(codes.FailedPrecondition,
			"the etcd of cluster %s is %s: its operator restores it (etcdutl snapshot restore) and then says so: "+
				"hawser-apiserver etcd-access --restored; or import an export: hawser kvstore import", s.cfg.Cluster, s.cfg.Etcd.mode())
	case len(s.cfg.Etcd.Members) > 0:
		return status.Error(codes.FailedPrecondition,
			"this etcd has several members, which must all be stopped: stop every API server of the cluster; on one of them, "+
				"hawser-apiserver restore --from FILE, and start it; on each other one, hawser-apiserver member replace, and start it")
	}
	file, err := s.uploads()
	if err != nil {
		return apiError(err)
	}
	defer func() {
		_ = file.Close()
		_ = os.Remove(file.Name())
	}()
	name := "(as sent)"
	for {
		c, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		name = cmp.Or(c.GetName(), name)
		if _, err := file.Write(c.GetData()); err != nil {
			return apiError(err)
		}
	}
	if !s.restoring.TryLock() { // what is built has one place
		return status.Error(codes.Aborted, "another snapshot is being restored; when that has ended (hawser status), restore this one if it is still wanted")
	}
	incarnation, r, err := s.restore(stream.Context(), file.Name(), name)
	if err != nil {
		s.restoring.Unlock()
		return err
	}
	return stream.SendAndClose(&hawserv1.RestoreResponse{Incarnation: incarnation, Revision: r.Revision, Keys: uint64(r.Keys)})
}

// restore builds the store of a snapshot, which the caller knows by a name, and
// has the API server begin anew on it.
func (s *Server) restore(ctx context.Context, path, name string) (incarnation string, r *etcd.Restored, err error) {
	r, err = etcd.PrepareRestore(ctx, s.cfg.etcdServer(s.creds), path,
		func(ctx context.Context, c *etcd.Client) (err error) {
			incarnation, err = s.prepareRestored(ctx, c)
			return err
		})
	if err != nil {
		// Nobody knows the file that it was put in.
		return "", nil, status.Error(codes.FailedPrecondition, strings.ReplaceAll(err.Error(), path, name))
	}
	select {
	case s.reopen <- &errReopen{why: "a snapshot is restored", restored: r}:
	default:
		r.Discard()
		return "", nil, status.Error(codes.Aborted, "the API server is starting anew already")
	}
	return incarnation, r, nil
}
