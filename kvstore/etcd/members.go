// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	memberPoll  = 100 * time.Millisecond
	memberProbe = 2 * time.Second
	memberDial  = 500 * time.Millisecond
)

// planStart decides how a member without data begins: as a founder of a new
// store, or by joining one in which a place was made for it (ReplaceMember).
func planStart(ctx context.Context, cfg ServerConfig, ec *embed.Config) (join bool, err error) {
	if len(cfg.Members) < 2 || hasData(cfg.DataDir) {
		return false, nil
	}
	if !cfg.othersListen(ctx) {
		return false, nil // all begin together
	}
	others, err := cfg.others()
	if err != nil {
		return false, err
	}
	defer func() { _ = others.Close() }()
	list, err := others.members(ctx)
	if err != nil || len(list) == 0 {
		return false, nil //nolint:nilerr // none of them is up: all begin together
	}
	if !slices.ContainsFunc(list, cfg.isIn) {
		// Who answered may lag behind; what a majority agrees on is the newest.
		if newest, err := others.agreedMembers(ctx); err == nil {
			list = newest
		}
	}
	var peers []string
	for _, m := range list {
		name := m.Name
		if cfg.isIn(m) {
			switch {
			case len(m.ClientURLs) > 0:
				return false, fmt.Errorf("start etcd: member %s has run before and its data is gone from %s; "+
					"join it anew: hawser-apiserver member replace", cfg.Name, cfg.DataDir)
			case m.Name != "": // a founder; the others were quicker
				return false, nil
			}
			name, join = cfg.Name, true
		}
		for _, u := range m.PeerURLs {
			peers = append(peers, name+"="+u)
		}
	}
	if !join {
		return false, fmt.Errorf("start etcd: the other members run a store without %s (%s); "+
			"make a place for it: hawser-apiserver member replace", cfg.Name, cfg.peerURL())
	}
	ec.ClusterState = embed.ClusterStateFlagExisting
	ec.InitialCluster = strings.Join(peers, ",")
	return true, nil
}

func (c ServerConfig) isIn(m *etcdserverpb.Member) bool {
	return slices.Contains(m.PeerURLs, c.peerURL())
}

func hasData(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "member"))
	return err == nil
}

// othersListen reports whether any of the other members can be connected to.
func (c ServerConfig) othersListen(ctx context.Context) bool {
	for _, m := range c.Members {
		if m.Name == c.Name {
			continue
		}
		conn, err := (&net.Dialer{Timeout: memberDial}).DialContext(ctx, "tcp", m.Client.String())
		if err == nil {
			_ = conn.Close()
			return true
		}
	}
	return false
}

// others is a client with all rights of the other members.
func (c ServerConfig) others() (*Client, error) {
	var eps []string
	for _, m := range c.Members {
		if m.Name != c.Name {
			eps = append(eps, m.Client.String())
		}
	}
	tls, err := c.Root.ClientTLS(nil)
	if err != nil {
		return nil, fmt.Errorf("root's certificate: %w", err)
	}
	return NewClient(ClientConfig{Endpoints: eps, TLS: tls, Log: c.Log})
}

// members is the list of members as the first that answers knows it, without
// asking for a majority's agreement.
func (c *Client) members(ctx context.Context) ([]*etcdserverpb.Member, error) {
	return c.listMembers(ctx, clientv3.WithSerializable())
}

// agreedMembers is the list of members that a majority agrees on.
func (c *Client) agreedMembers(ctx context.Context) ([]*etcdserverpb.Member, error) {
	return c.listMembers(ctx)
}

func (c *Client) listMembers(ctx context.Context, opts ...clientv3.OpOption) ([]*etcdserverpb.Member, error) {
	ctx, cancel := context.WithTimeout(ctx, memberProbe)
	defer cancel()
	r, err := c.etcd.MemberList(ctx, opts...)
	if err != nil {
		return nil, c.wrap("list members of", c.endpoint, err)
	}
	return r.Members, nil
}

// ReplaceMember makes a place in the store for this member, which must be
// stopped, in the stead of the one of its name, if there is one; the other
// members must run, with a majority. What is in DataDir is set aside, at the
// path returned. The next Start joins. Call it also for a member that never was
// one.
func ReplaceMember(ctx context.Context, cfg ServerConfig) (former string, err error) {
	if err := cfg.Validate(); err != nil {
		return "", err
	}
	cfg = cfg.withDefaults()
	if len(cfg.Members) < 2 {
		return "", errors.New("replace member: this etcd has one member; restore a backup instead")
	}
	if err := checkListen(ctx, cfg.Listen); err != nil {
		return "", fmt.Errorf("replace member %s: it must be stopped: %w", cfg.Name, err)
	}
	c, err := cfg.others()
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close() }()
	list, err := c.members(ctx)
	if err != nil {
		return "", fmt.Errorf("replace member %s: the others must run: %w", cfg.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.StartTimeout)
	defer cancel()
	for _, m := range list {
		if m.Name != cfg.Name && !slices.Contains(m.PeerURLs, cfg.peerURL()) {
			continue
		}
		if err := persist(ctx, func() error { _, err := c.etcd.MemberRemove(ctx, m.ID); return err }); err != nil {
			return "", c.wrap("remove member", cfg.Name, err)
		}
	}
	if err := persist(ctx, func() error { _, err := c.etcd.MemberAddAsLearner(ctx, []string{cfg.peerURL()}); return err }); err != nil {
		return "", c.wrap("add member", cfg.Name, err)
	}
	if former, err = setAside(cfg.DataDir, "replaced", time.Now()); err != nil {
		return "", fmt.Errorf("replace member %s: %w", cfg.Name, err)
	}
	return former, nil
}

// persist tries again while the store is only busy with a change of its members
// or leader.
func persist(ctx context.Context, fn func() error) error {
	for {
		err := fn()
		if ctx.Err() != nil {
			return err
		}
		switch {
		case err == nil:
			return nil
		case errors.Is(err, rpctypes.ErrUnhealthy), errors.Is(err, rpctypes.ErrNoLeader),
			errors.Is(err, rpctypes.ErrLeaderChanged), errors.Is(err, rpctypes.ErrMemberLearnerNotReady),
			errors.Is(err, rpctypes.ErrTimeout), errors.Is(err, rpctypes.ErrTimeoutDueToLeaderFail):
		case status.Code(err) == codes.DeadlineExceeded, status.Code(err) == codes.Unavailable, errors.Is(err, context.DeadlineExceeded):
		default:
			return err
		}
		if serr := sleep(ctx, memberPoll); serr != nil {
			return fmt.Errorf("%w: %w", serr, err)
		}
	}
}

// promote makes this member a voting one as soon as it has caught up.
func (s *Server) promote(ctx context.Context) error {
	others, err := s.cfg.others()
	if err != nil {
		return err
	}
	defer func() { _ = others.Close() }()
	id := uint64(s.etcd.Server.MemberID())
	err = persist(ctx, func() error {
		cctx, cancel := context.WithTimeout(ctx, others.timeout)
		defer cancel()
		_, err := others.etcd.MemberPromote(cctx, id)
		if errors.Is(err, rpctypes.ErrMemberNotLearner) {
			return nil
		}
		return err
	})
	if err != nil {
		return others.wrap("promote member", s.cfg.Name, err)
	}
	return nil
}
