// SPDX-License-Identifier: Apache-2.0

// Package clicontext says where the clusters are that the CLI talks to: one
// YAML file a mesh, found by name. `hawser lab up` writes one; without any, the
// CLI asks the agent and API server of the host it runs on.
package clicontext

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"
)

// Dir holds the contexts, one file a context, and the file "current" with the
// name of the one in use.
const Dir = "/run/hawser/contexts"

// Default places on a host.
const (
	DefaultAgentSocket     = "/run/hawser/agent.sock"
	DefaultAPIServerSocket = "/run/hawser/apiserver.sock"
)

// Context lists the clusters that can be asked.
type Context struct {
	Name     string    `json:"name"`
	Clusters []Cluster `json:"clusters"`
}

// Cluster is one cluster's API server and nodes.
type Cluster struct {
	Name   string `json:"name"`
	Socket string `json:"socket"` // of the API server
	Etcd   *Etcd  `json:"etcd,omitempty"`
	Nodes  []Node `json:"nodes"`
}

// Etcd is how `hawser kvstore` reaches a cluster's etcd.
type Etcd struct {
	Endpoint string `json:"endpoint"`
	// TLSDir holds ca.crt, tls.crt and tls.key of an administrator.
	TLSDir string `json:"tlsDir"`
	// Netns is the network namespace to dial from; empty is the caller's.
	Netns string `json:"netns,omitempty"`
}

// Node is one agent.
type Node struct {
	Name   string `json:"name"`
	Socket string `json:"socket"`
}

// Cluster finds a cluster by name; an empty name is the first one.
func (c *Context) Cluster(name string) (*Cluster, error) {
	for i := range c.Clusters {
		if name == "" || c.Clusters[i].Name == name {
			return &c.Clusters[i], nil
		}
	}
	return nil, fmt.Errorf("context %q has no cluster %q", c.Name, name)
}

// Load reads the context of a name, or a file when the name has a '/'. An empty
// name is the current one; without a current one it is this host.
func Load(name string) (*Context, error) {
	if name == "" {
		current, err := Current()
		if err != nil {
			return nil, err
		}
		if current == "" {
			return host(), nil
		}
		name = current
	}
	path := name
	if filepath.Base(name) == name {
		path = filepath.Join(Dir, name+".yaml")
	}
	raw, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("context %q: there is no %s", name, path)
	}
	if err != nil {
		return nil, fmt.Errorf("read context %q: %w", name, err)
	}
	var c Context
	if err := yaml.UnmarshalStrict(raw, &c); err != nil {
		return nil, fmt.Errorf("read context %s: %w", path, err)
	}
	if len(c.Clusters) == 0 {
		return nil, fmt.Errorf("context %s lists no clusters", path)
	}
	return &c, nil
}

// Current is the name of the context in use, empty for none. One whose file is
// gone is none.
func Current() (string, error) {
	raw, err := os.ReadFile(filepath.Join(Dir, "current"))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the current context: %w", err)
	}
	if _, err := os.Stat(filepath.Join(Dir, string(raw)+".yaml")); errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return string(raw), nil
}

// Use makes a context the current one.
func Use(name string) error {
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		return fmt.Errorf("use context %q: %w", name, err)
	}
	if err := writeAtomically(filepath.Join(Dir, "current"), []byte(name)); err != nil {
		return fmt.Errorf("use context %q: %w", name, err)
	}
	return nil
}

// Write stores a context. Use makes it the current one.
func Write(c *Context) error {
	raw, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("write context %q: %w", c.Name, err)
	}
	if err := os.MkdirAll(Dir, 0o755); err != nil {
		return fmt.Errorf("write context %q: %w", c.Name, err)
	}
	if err := writeAtomically(filepath.Join(Dir, c.Name+".yaml"), raw); err != nil {
		return fmt.Errorf("write context %q: %w", c.Name, err)
	}
	return nil
}

// names are all contexts, sorted.
func names() []string {
	files, _ := filepath.Glob(filepath.Join(Dir, "*.yaml"))
	for i, f := range files {
		files[i] = strings.TrimSuffix(filepath.Base(f), ".yaml")
	}
	return files
}

// Remove deletes a context, and the directories when they are empty then. When
// it was the current one, another takes its place. A missing one is no error.
func Remove(name string) error {
	if err := os.Remove(filepath.Join(Dir, name+".yaml")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove context %q: %w", name, err)
	}
	if current, err := os.ReadFile(filepath.Join(Dir, "current")); err == nil && string(current) == name {
		if err := os.Remove(filepath.Join(Dir, "current")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove context %q: %w", name, err)
		}
		if rest := names(); len(rest) > 0 {
			return Use(rest[0])
		}
	}
	// Fails while anything else is in them, which is as it should be.
	_ = os.Remove(Dir)
	_ = os.Remove(filepath.Dir(Dir))
	return nil
}

func writeAtomically(path string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	if _, err := tmp.Write(data); err != nil {
		_ = tmp.Close()
		return err
	}
	if err := tmp.Chmod(0o644); err != nil {
		_ = tmp.Close()
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

// host is this host: its own agent and API server.
func host() *Context {
	return &Context{Name: "host", Clusters: []Cluster{{
		Name:   "",
		Socket: DefaultAPIServerSocket,
		Nodes:  []Node{{Name: "", Socket: DefaultAgentSocket}},
	}}}
}
