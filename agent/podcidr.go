// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/enrol"
	"github.com/hawser-mesh/hawser/internal/backoff"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
	"github.com/hawser-mesh/hawser/kvstore/store"
)

const (
	podCIDRAskMin = 100 * time.Millisecond
	podCIDRAskMax = 2 * time.Second
)

// given is the range of each family that the cluster gave this node, as it is
// kept on disk: a restarted agent needs nobody to go on. A node that enrolled anew
// asks anew: it may have been forgotten, and its ranges be another's.
type given struct {
	Cluster   string       `json:"cluster"`
	Node      string       `json:"node"`
	Enrolment string       `json:"enrolment,omitempty"` // id of the token
	CIDR      netip.Prefix `json:"cidr"`
	CIDR6     netip.Prefix `json:"cidr6,omitzero"`
}

func (c *Config) givenFile() string { return filepath.Join(c.StateDir, "podcidr.json") }

// ownPodCIDR completes the configuration with the ranges that the cluster gave
// this node, if it was told none. It waits for them until the context ends.
func (c *Config) ownPodCIDR(ctx context.Context, enrolment *enrol.State) error {
	if c.PodCIDR.IsValid() {
		return nil
	}
	want := given{Cluster: c.Cluster, Node: c.Node}
	if enrolment != nil {
		want.Enrolment = enrolment.TokenID
	}
	kept, err := c.rememberedPodCIDR(want)
	if err != nil {
		c.Log.Warn("the range that this node was given is not readable; it asks again", "error", err)
	}
	if !kept.CIDR.IsValid() {
		if want.CIDR, want.CIDR6, err = c.askPodCIDR(ctx); err != nil {
			return fmt.Errorf("pod CIDR of node %s: %w", c.Node, err)
		}
		if err := c.rememberPodCIDR(want); err != nil {
			return err
		}
		kept = want
	}
	c.given, c.PodCIDR, c.PodCIDR6 = kept, kept.CIDR, kept.CIDR6
	return nil
}

// rememberedPodCIDR is what an earlier start kept, without ranges when there is
// nothing of this enrolment.
func (c *Config) rememberedPodCIDR(want given) (given, error) {
	raw, err := os.ReadFile(c.givenFile())
	if errors.Is(err, fs.ErrNotExist) {
		return want, nil
	}
	if err != nil {
		return want, err
	}
	var g given
	if err := json.Unmarshal(raw, &g); err != nil {
		return want, fmt.Errorf("%s: %w", c.givenFile(), err)
	}
	is := g
	is.CIDR, is.CIDR6 = netip.Prefix{}, netip.Prefix{}
	if is != want || !usable(g.CIDR) || !g.CIDR.Addr().Is4() {
		return want, nil
	}
	if !usable(g.CIDR6) || g.CIDR6.Addr().Is4() {
		g.CIDR6 = netip.Prefix{}
	}
	return g, nil
}

func (c *Config) rememberPodCIDR(g given) error {
	raw, err := json.Marshal(g)
	if err != nil {
		return fmt.Errorf("keep the pod CIDR: %w", err)
	}
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		return fmt.Errorf("keep the pod CIDR: %w", err)
	}
	tmp := c.givenFile() + ".new"
	if err := errors.Join(os.WriteFile(tmp, raw, 0o600), os.Rename(tmp, c.givenFile())); err != nil {
		return fmt.Errorf("keep the pod CIDR: %w", err)
	}
	return nil
}

func usable(p netip.Prefix) bool { return p.IsValid() && p == p.Masked() }

// askPodCIDR shows the cluster that the node is there, and waits to be told a
// range of each family that the cluster has.
func (c *Config) askPodCIDR(ctx context.Context) (four, six netip.Prefix, err error) {
	tls, err := c.etcdTLS()
	if err != nil {
		return four, six, err
	}
	kv, err := etcd.NewClient(etcd.ClientConfig{Endpoints: c.EtcdEndpoints, TLS: tls, Log: c.Log})
	if err != nil {
		return four, six, err
	}
	defer func() { _ = kv.Close() }()
	boot, err := bootID()
	if err != nil {
		return four, six, err
	}
	presence, err := store.NewPresence(store.PresenceConfig{Client: kv, Cluster: c.Cluster, Node: c.Node, BootID: boot, Log: c.Log})
	if err != nil {
		return four, six, err
	}
	asking, done := context.WithCancel(ctx)
	g, asking := errgroup.WithContext(asking)
	g.Go(func() error { return presence.Run(asking) })
	g.Go(func() (err error) {
		defer done()
		four, six, err = c.awaitPodCIDR(asking, kv)
		return err
	})
	err = g.Wait()
	if four.IsValid() {
		return four, six, nil
	}
	return four, six, errors.Join(ctx.Err(), err)
}

// awaitPodCIDR reads the node's decisions until they hold what the cluster has.
func (c *Config) awaitPodCIDR(ctx context.Context, kv kvstore.Client) (four, six netip.Prefix, err error) {
	key := kvstore.NewKey(kvstore.Local, c.Cluster, kvstore.KindNodeConfig, c.Node)
	wait := backoff.New(podCIDRAskMin, podCIDRAskMax)
	for told := false; ; told = true {
		four, six, err := c.decided(ctx, kv, key)
		if errors.As(err, new(*kvstore.BadRecord)) {
			return four, six, err
		}
		if err == nil && four.IsValid() {
			return four, six, nil
		}
		if !told {
			c.Log.Info("waits to be given a pod CIDR by the cluster's API server", "key", key, "error", err)
		}
		if err := wait.Wait(ctx); err != nil {
			return netip.Prefix{}, netip.Prefix{}, err
		}
	}
}

// decided are the ranges that the node has been given; none while one of a family
// that the cluster has is missing.
func (c *Config) decided(ctx context.Context, kv getter, key kvstore.Key) (four, six netip.Prefix, err error) {
	cluster, err := recordAt[*keyspacev1.Cluster](ctx, kv, kvstore.NewKey(kvstore.State, c.Cluster, kvstore.KindCluster))
	if err != nil || cluster == nil {
		return four, six, err
	}
	config, err := recordAt[*keyspacev1.NodeConfig](ctx, kv, key)
	if err != nil {
		return four, six, err
	}
	four, six = ranges(config.GetPodCidrs())
	switch _, has := ranges(cluster.GetPodCidrs()); {
	case !has.IsValid():
		return four, netip.Prefix{}, nil
	case !six.IsValid():
		return netip.Prefix{}, netip.Prefix{}, nil
	}
	return four, six, nil
}

// getter reads one key; nil when it is not there.
type getter interface {
	Get(ctx context.Context, key string) (*kvstore.KV, int64, error)
}

// recordAt reads one record, nil when there is none.
func recordAt[M proto.Message](ctx context.Context, kv getter, key kvstore.Key) (m M, err error) {
	stored, _, err := kv.Get(ctx, key.String())
	if err != nil || stored == nil {
		return m, err
	}
	rec, err := kvstore.Decode(key, stored.Value)
	if err != nil {
		return m, err
	}
	return rec.(M), nil // Decode has checked the type
}

// ranges are the first usable one of each family, invalid where there is none.
func ranges(texts []string) (four, six netip.Prefix) {
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		switch {
		case err != nil || !usable(p):
		case p.Addr().Is4() && !four.IsValid():
			four = p
		case p.Addr().Is6() && !six.IsValid():
			six = p
		}
	}
	return four, six
}
