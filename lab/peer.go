// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"strings"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
)

// peer joins every pair of clusters by token and waits until each has the
// other's keys.
func (b *builder) peer(ctx context.Context) (string, error) {
	start := time.Now()
	cs := b.state.Clusters
	var details []string
	for i, host := range cs {
		if b.state.Spec.SharedEtcd {
			break // they see each other by themselves
		}
		for _, guest := range cs[i+1:] {
			b.trap("mesh " + guest.Name + " joins " + host.Name)
			if err := join(ctx, host, guest); err != nil {
				return "", err
			}
			details = append(details, guest.Name+" joined "+host.Name)
		}
	}
	var keys uint64
	for _, c := range cs {
		n, err := waitConnected(ctx, c, len(cs)-1)
		if err != nil {
			return "", err
		}
		keys += n
	}
	const few = 3
	if b.state.Spec.SharedEtcd {
		details = []string{fmt.Sprintf("%d clusters in one etcd", len(cs))}
	} else if len(details) > few {
		details = []string{fmt.Sprintf("%d clusters, %d pairs", len(cs), len(details))}
	}
	return fmt.Sprintf("%-31s %d keys in %d ms", strings.Join(details, ", "), keys, time.Since(start).Milliseconds()), nil
}

func join(ctx context.Context, host, guest Cluster) error {
	var token string
	err := withMesh(ctx, host.Socket, func(ctx context.Context, m hawserv1.MeshClient) error {
		r, err := m.Invite(ctx, &hawserv1.InviteRequest{To: guest.Name})
		token = r.GetToken()
		return err
	})
	if err != nil {
		return fmt.Errorf("%s invites %s: %w", host.Name, guest.Name, err)
	}
	err = withMesh(ctx, guest.Socket, func(ctx context.Context, m hawserv1.MeshClient) error {
		r, err := m.Join(ctx, &hawserv1.JoinRequest{Token: token})
		if err == nil && !r.GetJoined() {
			return fmt.Errorf("refused: %v", r.GetFindings())
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("%s joins %s: %w", guest.Name, host.Name, err)
	}
	return nil
}

// waitConnected waits until a cluster has the keys of all its peers, and counts
// them.
func waitConnected(ctx context.Context, c Cluster, peers int) (keys uint64, err error) {
	const timeout = 30 * time.Second
	seen := "nothing"
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not within %s", timeout))
	defer cancel()
	err = poll(ctx, fmt.Sprintf("%s to have the keys of %d peers", c.Name, peers), func() (bool, error) {
		keys = 0
		var s *hawserv1.MeshStatusResponse
		err := withMesh(ctx, c.Socket, func(ctx context.Context, m hawserv1.MeshClient) (err error) {
			s, err = m.MeshStatus(ctx, &hawserv1.MeshStatusRequest{})
			return err
		})
		if err != nil {
			return false, err
		}
		seen = fmt.Sprint(s.GetPeers())
		ready := 0
		for _, p := range s.GetPeers() {
			if p.GetState() == "connected" && p.GetKeys() > 0 {
				ready++
				keys += p.GetKeys()
			}
		}
		return ready >= peers, nil
	})
	if err != nil {
		return 0, fmt.Errorf("%w; last seen: %s", err, seen)
	}
	return keys, nil
}
