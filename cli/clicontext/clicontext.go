// SPDX-License-Identifier: Apache-2.0

// Package clicontext says where the clusters are that the CLI talks to: one
// YAML file a mesh, found by name in the user's directory, /etc/hawser/contexts
// or Dir. `hawser lab up` writes one; without any, the CLI asks the agent and API
// server of the host it runs on.
package clicontext

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// Dir holds the contexts that this host's programs make, one file a context, and
// the file "current" with the name of the one in use.
const Dir = "/run/hawser/contexts"

const etcDir = "/etc/hawser/contexts"

// UserDir holds the contexts that a user made, and the user's choice; empty when
// the user has no home.
func UserDir() string {
	dir, err := os.UserConfigDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "hawser", "contexts")
}

// dirs are where contexts are looked for, in this order.
func dirs() []string {
	if u := UserDir(); u != "" {
		return []string{u, etcDir, Dir}
	}
	return []string{etcDir, Dir}
}

const (
	currentFile = "current"
	hostName    = "host" // the context that needs no file
)

// Context lists the clusters that can be asked.
type Context struct {
	Name     string    `json:"name"`
	Clusters []Cluster `json:"clusters"`
}

// Cluster is one cluster's API server and nodes. The API server is reached by
// its socket on this host, or else at an address, by mutual TLS.
type Cluster struct {
	Name   string `json:"name"`
	Socket string `json:"socket,omitempty"`
	// Address is HOST:PORT of its API port.
	Address string `json:"address,omitempty"`
	// TLSDir holds ca.crt, tls.crt and tls.key of an administrator; a relative
	// one is below the context's file.
	TLSDir string `json:"tlsDir,omitempty"`
	Etcd   *Etcd  `json:"etcd,omitempty"`
	Nodes  []Node `json:"nodes,omitempty"`
}

// Endpoint is where the API server is asked.
func (c *Cluster) Endpoint() string {
	if c.Socket != "" {
		return "unix:" + c.Socket
	}
	return c.Address
}

// validate says what is wrong, all problems joined.
func (c *Context) validate() error {
	var errs []error
	if len(c.Clusters) == 0 {
		errs = append(errs, errors.New("it lists no clusters"))
	}
	for _, cl := range c.Clusters {
		if e := cl.Etcd; e != nil && (e.Endpoint == "" || e.TLSDir == "") {
			errs = append(errs, fmt.Errorf("cluster %q: etcd: endpoint and tlsDir are needed", cl.Name))
		}
		switch {
		case cl.Socket != "":
		case cl.Address == "":
			errs = append(errs, fmt.Errorf("cluster %q: socket or address is needed", cl.Name))
		case cl.TLSDir == "" || cl.Name == "":
			errs = append(errs, fmt.Errorf("cluster %q at %s: name and tlsDir are needed with an address", cl.Name, cl.Address))
		default:
			if _, _, err := net.SplitHostPort(cl.Address); err != nil {
				errs = append(errs, fmt.Errorf("cluster %q: address %q: want HOST:PORT", cl.Name, cl.Address))
			}
		}
	}
	return errors.Join(errs...)
}

// Etcd is how `hawser kvstore` reaches a cluster's etcd.
type Etcd struct {
	Endpoint string `json:"endpoint"`
	// TLSDir holds ca.crt, tls.crt and tls.key of an administrator; a relative
	// one is below the context's file.
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
	var names []string
	for i := range c.Clusters {
		if c.Clusters[i].Is(name) {
			return &c.Clusters[i], nil
		}
		names = append(names, c.Clusters[i].Name)
	}
	return nil, fmt.Errorf("context %q has no cluster %q, there are: %s", c.Name, name, strings.Join(names, ", "))
}

// Is reports whether a name, as a user gave it, is this cluster's. An empty one
// is any; a cluster whose name is not known may have any.
func (c *Cluster) Is(name string) bool { return name == "" || c.Name == "" || c.Name == name }

// Is is the same of a node.
func (n *Node) Is(name string) bool { return name == "" || n.Name == "" || n.Name == name }

// Load reads the context of a name, or a file when the name has a '/'. An empty
// name is the current one; without a current one, or by the name "host", it is
// this host.
func Load(name string) (*Context, error) {
	if name == "" {
		var err error
		if name, err = Current(); err != nil {
			return nil, err
		}
	}
	if name == "" || name == hostName {
		return host(), nil
	}
	path, err := find(name)
	if err != nil {
		return nil, err
	}
	return read(path)
}

func read(path string) (*Context, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read context: %w", err)
	}
	var c Context
	if err := yaml.UnmarshalStrict(raw, &c); err != nil {
		return nil, fmt.Errorf("read context %s: %w", path, err)
	}
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("context %s: %w", path, err)
	}
	for i := range c.Clusters {
		dirs := []*string{&c.Clusters[i].TLSDir}
		if e := c.Clusters[i].Etcd; e != nil {
			dirs = append(dirs, &e.TLSDir)
		}
		for _, d := range dirs {
			if *d != "" && !filepath.IsAbs(*d) {
				*d = filepath.Join(filepath.Dir(path), *d)
			}
		}
	}
	return &c, nil
}

// find is the file of a context; a name with a '/' is one itself.
func find(name string) (string, error) {
	if filepath.Base(name) != name {
		if _, err := os.Stat(name); err != nil {
			return "", fmt.Errorf("context %q: %w", name, err)
		}
		return name, nil
	}
	for _, d := range dirs() {
		path := filepath.Join(d, name+".yaml")
		if _, err := os.Stat(path); err == nil {
			return path, nil
		} else if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, os.ErrPermission) {
			return "", fmt.Errorf("context %q: %w", name, err)
		}
	}
	return "", fmt.Errorf("context %q: there is no %s.yaml in %s; there are: %s", name, name, strings.Join(dirs(), ", "), strings.Join(known(), ", "))
}

// Current is the name of the context in use, empty for none: the last choice
// counts, the user's or lab's. One whose file is gone is none.
func Current() (string, error) {
	var name string
	var when time.Time
	for _, d := range dirs() {
		path := filepath.Join(d, currentFile)
		info, err := os.Stat(path)
		if err != nil {
			continue
		}
		raw, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("read the current context: %w", err)
		}
		chosen := strings.TrimSpace(string(raw))
		if _, err := find(chosen); err != nil && chosen != hostName {
			continue
		}
		if name == "" || info.ModTime().After(when) {
			name, when = chosen, info.ModTime()
		}
	}
	return name, nil
}

// Found is a context that can be used.
type Found struct {
	Context
	File    string `json:"file,omitempty"`
	Current bool   `json:"current"`
	Problem string `json:"problem,omitempty"` // why it cannot be used
}

// known are the names of all contexts, with this host last.
func known() []string {
	found := map[string]bool{}
	for _, d := range dirs() {
		for _, name := range namesIn(d) {
			found[name] = true
		}
	}
	return append(slices.Sorted(maps.Keys(found)), hostName)
}

// All lists the contexts by name, with this host last.
func All() ([]Found, error) {
	current, err := Current()
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	var out []Found
	for _, d := range dirs() {
		files, _ := filepath.Glob(filepath.Join(d, "*.yaml"))
		for _, f := range files {
			name := strings.TrimSuffix(filepath.Base(f), ".yaml")
			if seen[name] {
				continue
			}
			seen[name] = true
			found := Found{File: f, Current: name == current}
			if c, err := read(f); err != nil {
				found.Problem = err.Error()
			} else {
				found.Context = *c
			}
			found.Name = name
			out = append(out, found)
		}
	}
	slices.SortFunc(out, func(a, b Found) int { return strings.Compare(a.Name, b.Name) })
	h := host()
	return append(out, Found{Context: *h, Current: current == "" || current == hostName}), nil
}

// Choose makes a context the user's current one; "host" is this host.
func Choose(name string) error {
	if name != hostName {
		if filepath.Base(name) != name {
			return fmt.Errorf("use context %q: give its name, not a file", name)
		}
		if _, err := find(name); err != nil {
			return err
		}
	}
	dir := UserDir()
	if dir == "" {
		return fmt.Errorf("use context %q: you have no home directory; give --context instead", name)
	}
	return writeCurrent(dir, name)
}

// Add stores a context of the user.
func Add(c *Context) (path string, err error) {
	if err := c.validate(); err != nil {
		return "", fmt.Errorf("add context %q: %w", c.Name, err)
	}
	dir := UserDir()
	if dir == "" {
		return "", fmt.Errorf("add context %q: you have no home directory", c.Name)
	}
	return filepath.Join(dir, c.Name+".yaml"), writeIn(dir, c)
}

// Use makes a context the current one of this host.
func Use(name string) error { return writeCurrent(Dir, name) }

func writeCurrent(dir, name string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("use context %q: %w", name, err)
	}
	if err := writeAtomically(filepath.Join(dir, currentFile), []byte(name)); err != nil {
		return fmt.Errorf("use context %q: %w", name, err)
	}
	return nil
}

// Write stores a context of this host. Use makes it the current one.
func Write(c *Context) error { return writeIn(Dir, c) }

func writeIn(dir string, c *Context) error {
	raw, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("write context %q: %w", c.Name, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write context %q: %w", c.Name, err)
	}
	if err := writeAtomically(filepath.Join(dir, c.Name+".yaml"), raw); err != nil {
		return fmt.Errorf("write context %q: %w", c.Name, err)
	}
	return nil
}

// namesIn are the contexts of a directory, sorted.
func namesIn(dir string) []string {
	files, _ := filepath.Glob(filepath.Join(dir, "*.yaml"))
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
	if current, err := os.ReadFile(filepath.Join(Dir, currentFile)); err == nil && string(current) == name {
		if err := os.Remove(filepath.Join(Dir, currentFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove context %q: %w", name, err)
		}
		if rest := namesIn(Dir); len(rest) > 0 {
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
