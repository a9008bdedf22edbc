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

// given is the range that the cluster gave this node, as it is kept on disk: a
// restarted agent needs nobody to go on. A node that enrolled anew asks anew: it
// may have been forgotten, and its range be another's.
type given struct {
	Cluster   string       `json:"cluster"`
	Node      string       `json:"node"`
	Enrolment string       `json:"enrolment,omitempty"` // id of the token
	CIDR      netip.Prefix `json:"cidr"`
}

func (c *Config) givenFile() string { return filepath.Join(c.StateDir, "podcidr.json") }

// ownPodCIDR completes the configuration with the range that the cluster gave
// this node, if it was told none. It waits for one until the context ends.
func (c *Config) ownPodCIDR(ctx context.Context, enrolment *enrol.State) error {
	if c.PodCIDR.IsValid() {
		return nil
	}
	want := given{Cluster: c.Cluster, Node: c.Node}
	if enrolment != nil {
		want.Enrolment = enrolment.TokenID
	}
	if cidr, err := c.rememberedPodCIDR(want); err != nil {
		c.Log.Warn("the range that this node was given is not readable; it asks again", "error", err)
	} else if cidr.IsValid() {
		c.PodCIDR = cidr
		return nil
	}
	cidr, err := c.askPodCIDR(ctx)
	if err != nil {
		return fmt.Errorf("pod CIDR of node %s: %w", c.Node, err)
	}
	want.CIDR, c.PodCIDR = cidr, cidr
	return c.rememberPodCIDR(want)
}

// rememberedPodCIDR is what an earlier start kept, invalid when there is nothing
// of this enrolment.
func (c *Config) rememberedPodCIDR(want given) (netip.Prefix, error) {
	raw, err := os.ReadFile(c.givenFile())
	if errors.Is(err, fs.ErrNotExist) {
		return netip.Prefix{}, nil
	}
	if err != nil {
		return netip.Prefix{}, err
	}
	var g given
	if err := json.Unmarshal(raw, &g); err != nil {
		return netip.Prefix{}, fmt.Errorf("%s: %w", c.givenFile(), err)
	}
	want.CIDR = g.CIDR
	if g != want || !usable(g.CIDR) {
		return netip.Prefix{}, nil
	}
	return g.CIDR, nil
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

// usable tells the ranges that this version's datapath carries.
func usable(p netip.Prefix) bool { return p.IsValid() && p.Addr().Is4() && p == p.Masked() }

// askPodCIDR shows the cluster that the node is there, and waits to be told a
// range.
func (c *Config) askPodCIDR(ctx context.Context) (netip.Prefix, error) {
	tls, err := c.etcdTLS()
	if err != nil {
		return netip.Prefix{}, err
	}
	kv, err := etcd.NewClient(etcd.ClientConfig{Endpoints: c.EtcdEndpoints, TLS: tls, Log: c.Log})
	if err != nil {
		return netip.Prefix{}, err
	}
	defer func() { _ = kv.Close() }()
	boot, err := bootID()
	if err != nil {
		return netip.Prefix{}, err
	}
	presence, err := store.NewPresence(store.PresenceConfig{Client: kv, Cluster: c.Cluster, Node: c.Node, BootID: boot, Log: c.Log})
	if err != nil {
		return netip.Prefix{}, err
	}
	var cidr netip.Prefix
	asking, done := context.WithCancel(ctx)
	g, asking := errgroup.WithContext(asking)
	g.Go(func() error { return presence.Run(asking) })
	g.Go(func() (err error) {
		defer done()
		cidr, err = c.awaitPodCIDR(asking, kv)
		return err
	})
	err = g.Wait()
	if cidr.IsValid() {
		return cidr, nil
	}
	return cidr, errors.Join(ctx.Err(), err)
}

// awaitPodCIDR reads the node's decisions until they hold a range.
func (c *Config) awaitPodCIDR(ctx context.Context, kv kvstore.Client) (netip.Prefix, error) {
	key := kvstore.NewKey(kvstore.Local, c.Cluster, kvstore.KindNodeConfig, c.Node)
	wait := backoff.New(podCIDRAskMin, podCIDRAskMax)
	for told := false; ; told = true {
		stored, _, err := kv.Get(ctx, key.String())
		if err == nil && stored != nil {
			if cidr, err := podCIDROf(key, stored.Value); err != nil || cidr.IsValid() {
				return cidr, err
			}
		}
		if !told {
			c.Log.Info("waits to be given a pod CIDR by the cluster's API server", "key", key, "error", err)
		}
		if err := wait.Wait(ctx); err != nil {
			return netip.Prefix{}, err
		}
	}
}

// podCIDROf is the first range of a node's record that can be used, invalid when
// there is none yet.
func podCIDROf(key kvstore.Key, value []byte) (netip.Prefix, error) {
	m, err := kvstore.Decode(key, value)
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, text := range m.(*keyspacev1.NodeConfig).GetPodCidrs() {
		if p, err := netip.ParsePrefix(text); err == nil && usable(p) {
			return p, nil
		}
	}
	return netip.Prefix{}, nil
}
