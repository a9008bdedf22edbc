// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hawser-mesh/hawser/clustermesh/enrol"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/tunnel"
)

// pinRoot is where each node's pins are by default.
const pinRoot = "/sys/fs/bpf/hawser"

// complete enrols the node if it is told to, and fills what it was not told from
// its enrolment, and the rest from the defaults. What contradicts the enrolment
// is an error. It returns the enrolment; nil when there is none.
func (c *Config) complete(ctx context.Context) (*enrol.State, error) {
	state, err := c.enrolment(ctx)
	if err != nil {
		return nil, err
	}
	if state != nil {
		if err := c.follow(state); err != nil {
			return nil, err
		}
	}
	if c.ClusterBits == 0 {
		c.ClusterBits = identity.DefaultClusterBits
	}
	if c.TunnelPort == 0 {
		c.TunnelPort = tunnel.DefaultVXLANPort
	}
	if c.PinPath == "" && c.Node != "" {
		c.PinPath = filepath.Join(pinRoot, c.Node)
	}
	return state, nil
}

// enrolment joins by the token, or reads what an earlier start stored.
func (c *Config) enrolment(ctx context.Context) (*enrol.State, error) {
	if !filepath.IsAbs(c.TLSDir) {
		return nil, nil //nolint:nilnil // Validate says what is wrong with it
	}
	stored, err := enrol.Load(c.TLSDir)
	enrolled := err == nil
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("--tls-dir: %w", err)
	}
	token, err := c.token()
	switch {
	case err != nil && enrolled && errors.Is(err, fs.ErrNotExist):
		c.Log.Info("the file of --join is gone; the node has enrolled already", "cluster", stored.Cluster, "node", stored.Node)
		return &stored, nil
	case err != nil:
		return nil, err
	case token == "" && enrolled:
		return &stored, nil
	case token == "":
		return nil, nil //nolint:nilnil // a certificate issued by hand
	}
	state, err := c.node().Join(ctx, token)
	if err != nil {
		return nil, fmt.Errorf("--join: %w", err)
	}
	return &state, nil
}

func (c *Config) node() *enrol.Node { return &enrol.Node{Dir: c.TLSDir, Now: time.Now, Log: c.Log} }

// token is the text of --join: itself, or the content of @file.
func (c *Config) token() (string, error) {
	path, isFile := strings.CutPrefix(c.Join, "@")
	if !isFile {
		return c.Join, nil
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("--join: %w", err)
	}
	return string(raw), nil
}

// follow fills from the enrolment.
func (c *Config) follow(s *enrol.State) error {
	var errs []error
	clash := func(flag string, told, is any) {
		errs = append(errs, fmt.Errorf("%s %v: the enrolment in %s says %v; leave the flag out, or enrol anew with a token for it", flag, told, c.TLSDir, is))
	}
	switch c.Cluster {
	case "", s.Cluster:
		c.Cluster = s.Cluster
	default:
		clash("--cluster", c.Cluster, s.Cluster)
	}
	switch c.Node {
	case "", s.Node:
		c.Node = s.Node
	default:
		clash("--node", c.Node, s.Node)
	}
	switch c.ClusterBits {
	case 0, s.ClusterBits:
		c.ClusterBits = s.ClusterBits
	default:
		clash("--cluster-bits", c.ClusterBits, s.ClusterBits)
	}
	switch uint32(c.TunnelPort) {
	case 0, s.TunnelPort:
		c.TunnelPort = uint16(s.TunnelPort)
	default:
		clash("--tunnel-port", c.TunnelPort, s.TunnelPort)
	}
	if len(c.EtcdEndpoints) == 0 {
		c.EtcdEndpoints = slices.Clone(s.EtcdEndpoints)
	}
	return errors.Join(errs...)
}
