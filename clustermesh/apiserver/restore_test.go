// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"bytes"
	"context"
	"io"
	"os"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
)

// upload is a restore's stream that brings one chunk.
type upload struct {
	grpc.ServerStream
	ctx    context.Context //nolint:containedctx // a stream has one
	data   []byte
	answer *hawserv1.RestoreResponse
}

func (u *upload) Context() context.Context { return u.ctx }

func (u *upload) Recv() (*hawserv1.RestoreChunk, error) {
	if u.data == nil {
		return nil, io.EOF
	}
	c := &hawserv1.RestoreChunk{Data: u.data}
	u.data = nil
	return c, nil
}

func (u *upload) SendAndClose(r *hawserv1.RestoreResponse) error {
	u.answer = r
	return nil
}

// What a restore builds has one place: a second one is refused while the first is
// under way, and for good when that has succeeded; after one that failed it may be
// tried again.
func TestRestoresOneAtATime(t *testing.T) {
	s := start(t, testConfig(t))
	var good bytes.Buffer
	if _, err := s.etcd.Snapshot(t.Context(), &good); err != nil {
		t.Fatal(err)
	}
	restore := func(data []byte, want codes.Code) {
		t.Helper()
		u := &upload{ctx: t.Context(), data: data}
		if err := s.Restore(u); status.Code(err) != want || (u.answer != nil) != (want == codes.OK) {
			t.Fatalf("answer %v, %v, want %s", u.answer, err, want)
		}
	}
	s.restoring.Lock()
	restore(good.Bytes(), codes.Aborted)
	s.restoring.Unlock()
	restore([]byte("x"), codes.FailedPrecondition)
	restore(good.Bytes(), codes.OK)
	restore(good.Bytes(), codes.Aborted)
	again := <-s.reopen
	if _, err := os.Stat(s.cfg.etcdServer(s.creds).DataDir + ".restoring"); err != nil {
		t.Errorf("the refused restore took what the first one had built: %v", err)
	}
	again.restored.Discard()
}
