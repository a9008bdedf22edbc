// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

const (
	agentRole = "-agent"
	// expelPoll is how often a member looks whether users were removed; it
	// costs one load of a number.
	expelPoll = 250 * time.Millisecond
	// userKeyBytes of a key's hash tell the keys of a cluster apart; the name
	// stays within the 64 bytes that X.509 gives a common name.
	userKeyBytes = 8
)

// NodeUser is the etcd user of one key of one node, with the rights of its
// cluster's agents: the common name of the node's certificate. Without that user
// etcd admits the certificate no more.
func NodeUser(cluster string, keyHash [32]byte) string {
	return nodeUsers(cluster) + hex.EncodeToString(keyHash[:userKeyBytes])
}

// nodeUsers is what the users of a cluster's nodes begin with. No cluster's name
// has a colon.
func nodeUsers(cluster string) string { return cluster + agentRole + ":" }

// nodesRole is what all enrolled nodes of a cluster may.
func nodesRole(cluster string) string { return cluster + agentRole + "s" }

// AdmitNode makes a node's user, if it is not there, with the rights of its
// cluster's nodes and that to write its own record, status and presence. It
// needs root's rights.
func (c *Client) AdmitNode(ctx context.Context, cluster, node, user string) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	u, err := c.etcd.UserGet(ctx, user)
	if err == nil && slices.Contains(u.Roles, user) && slices.Contains(u.Roles, nodesRole(cluster)) {
		return nil
	}
	if err != nil && !errors.Is(err, rpctypes.ErrUserNotFound) {
		return c.wrap("admit etcd user", user, err)
	}
	if err = ensureNodesRole(ctx, c.etcd, cluster); err == nil {
		err = ensureRole(ctx, c.etcd, user)
	}
	if err == nil {
		_, own := nodeTable(cluster, node)
		err = ensureGrants(ctx, c.etcd, user, own)
	}
	if err == nil {
		// Roles before the user, and its own role last: a user that has it is complete.
		err = ensureUser(ctx, c.etcd, user, nodesRole(cluster), user)
	}
	if err != nil {
		return c.wrap("admit etcd user", user, err)
	}
	return nil
}

// ExpelNode removes a node's user: every call of who holds its certificate is
// refused from then on, and its open watches end within a second. It is no error
// if there is none. It needs root's rights.
func (c *Client) ExpelNode(ctx context.Context, user string) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if _, err := c.etcd.UserDelete(ctx, user); err != nil && !errors.Is(err, rpctypes.ErrUserNotFound) {
		return c.wrap("expel etcd user", user, err)
	}
	if _, err := c.etcd.RoleDelete(ctx, user); err != nil && !errors.Is(err, rpctypes.ErrRoleNotFound) {
		return c.wrap("remove etcd role", user, err)
	}
	return nil
}

// ensureNodesRole makes the role that all enrolled nodes have.
func ensureNodesRole(ctx context.Context, c *clientv3.Client, cluster string) error {
	if err := ensureRole(ctx, c, nodesRole(cluster)); err != nil {
		return err
	}
	shared, _ := nodeTable(cluster, "")
	return ensureGrants(ctx, c, nodesRole(cluster), shared)
}

// NodeUsers lists the users of a cluster's nodes. It needs root's rights.
func (c *Client) NodeUsers(ctx context.Context, cluster string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	r, err := c.etcd.UserList(ctx)
	if err != nil {
		return nil, c.wrap("list etcd users of", c.endpoint, err)
	}
	return slices.DeleteFunc(r.Users, func(u string) bool { return !strings.HasPrefix(u, nodeUsers(cluster)) }), nil
}

// openStreams are the watches and lease renewals that are open at this member.
// etcd asks who may watch only when a watch begins.
type openStreams struct {
	mu     sync.Mutex
	open   map[*openStream]bool
	closed bool
}

type openStream struct {
	grpc.ServerStream
	user string
	ctx  context.Context //nolint:containedctx // how a server's stream tells that it ends
	cut  context.CancelCauseFunc
}

func (s *openStream) Context() context.Context { return s.ctx }

var (
	errExpelled = status.Error(codes.PermissionDenied, "etcd's user of this certificate was removed")
	errStopping = status.Error(codes.Unavailable, "etcd is stopping")
)

func (o *openStreams) intercept(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	s := &openStream{ServerStream: ss, user: streamUser(ss.Context())}
	s.ctx, s.cut = context.WithCancelCause(ss.Context())
	defer s.cut(nil)
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return errStopping
	}
	if o.open == nil {
		o.open = map[*openStream]bool{}
	}
	o.open[s] = true
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.open, s)
	}()
	err := next(srv, s)
	if cause := context.Cause(s.ctx); cause == errExpelled || cause == errStopping { //nolint:errorlint // the very values
		return cause
	}
	return err
}

// streamUser is the common name of the certificate that a stream's connection
// has shown.
func streamUser(ctx context.Context) string {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ""
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return ""
	}
	return info.State.VerifiedChains[0][0].Subject.CommonName
}

// cut ends the streams of users that are gone.
func (o *openStreams) cut(exists func(user string) bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	known := map[string]bool{}
	for s := range o.open {
		ok, asked := known[s.user]
		if !asked {
			ok = exists(s.user)
			known[s.user] = ok
		}
		if !ok {
			s.cut(errExpelled)
		}
	}
}

// close ends all streams and lets none begin any more. etcd would wait for them
// when it stops, for as long as a request may take, and be away meanwhile.
func (o *openStreams) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	for s := range o.open {
		s.cut(errStopping)
	}
}

// cutExpelled ends the streams of users that were removed, whichever member was
// told, until the context ends.
func (s *Server) cutExpelled(ctx context.Context) {
	auth := s.etcd.Server.AuthStore()
	exists := func(user string) bool {
		_, err := auth.UserGet(&pb.AuthUserGetRequest{Name: user})
		return err == nil
	}
	for seen := auth.Revision(); sleep(ctx, expelPoll) == nil; {
		if now := auth.Revision(); now != seen && auth.IsAuthEnabled() {
			s.open.cut(exists)
			seen = now
		}
	}
}
