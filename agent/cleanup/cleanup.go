// SPDX-License-Identifier: Apache-2.0

// Package cleanup removes what an agent leaves on its node: programs, maps and
// their pins, devices, routes, its socket, and what it keeps on disk if told.
//
// Start with Find, which lists it, and Run, which removes it and looks again.
// Both work in the current network namespace. Out of scope is what the node has
// in the keyspace: `hawser node forget` removes that.
package cleanup

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

	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/netdev"
	"github.com/hawser-mesh/hawser/internal/backoff"
)

// Config says which agent's.
type Config struct {
	PinPath string
	Socket  string
	// Cgroup is where the agent has programs on sockets; empty: as loader.Elsewhere.
	Cgroup string
	// StateDir and TLSDir are where the agent's files are that are to be
	// removed too; empty leaves them.
	StateDir string
	TLSDir   string
	// Force removes also while an agent runs, and takes off programs that are pinned
	// elsewhere, or nowhere.
	Force bool
}

// Results of an item.
const (
	Found   = "found"
	Removed = "removed"
	Left    = "left"
	Kept    = "kept" // it was not to be removed
)

// Item is something that an agent left.
type Item struct {
	Kind   string `json:"kind"` // link, filter, program, map, pins, route, device, socket, state, credentials
	Name   string `json:"name"`
	ID     uint32 `json:"id,omitempty"` // the kernel's
	Result string `json:"result"`
	// Why it is left or kept.
	Why string `json:"why,omitempty"`

	remove func() error
	gone   func() bool // nil: the next Find tells
}

// Find lists what there is, in the order in which it is removed.
func Find(cfg Config) ([]Item, error) {
	objects, err := loader.Inventory(cfg.PinPath)
	if err != nil {
		return nil, err
	}
	elsewhere, err := loader.Elsewhere(cfg.PinPath, cfg.Cgroup)
	if err != nil {
		return nil, err
	}
	var items []Item
	for _, o := range append(elsewhere, objects...) { // what takes packets first
		it := Item{Kind: o.Kind, Name: o.Name, ID: o.ID, remove: o.Remove, gone: o.Gone}
		if !slices.ContainsFunc(items, func(i Item) bool { return i.key() == it.key() }) { // of filters both tell
			items = append(items, it)
		}
	}
	devices, err := deviceItems()
	if err != nil {
		return nil, err
	}
	items = append(items, devices...)
	for i := range items {
		items[i].Result = Found
	}
	files, err := Files(cfg)
	if err != nil {
		return nil, err
	}
	return append(items, files...), nil
}

func deviceItems() ([]Item, error) {
	routes, err := netdev.Routes()
	if err != nil {
		return nil, err
	}
	var items []Item
	for _, r := range routes {
		items = append(items, Item{Kind: "route", Name: r.String(), remove: func() error { return netdev.DeleteRoute(r) }})
	}
	pods, err := netdev.PodDevices()
	if err != nil {
		return nil, err
	}
	for _, dev := range pods {
		items = append(items, Item{Kind: "device", Name: dev, remove: func() error { return netdev.DeletePod(dev) }})
	}
	host, err := netdev.HostDeviceExists()
	if err != nil {
		return nil, err
	}
	if host {
		items = append(items, Item{Kind: "device", Name: netdev.HostDevice, remove: netdev.DeleteHostDevice})
	}
	tunnel, err := netdev.TunnelDeviceExists()
	if err != nil {
		return nil, err
	}
	if tunnel {
		items = append(items, Item{Kind: "device", Name: netdev.TunnelDevice, remove: netdev.DeleteTunnelDevice})
	}
	return items, nil
}

// Files are the agent's own files in cfg's directories, as found.
func Files(cfg Config) ([]Item, error) {
	items, err := fileItems(cfg)
	for i := range items {
		items[i].Result = Found
	}
	return items, err
}

// fileItems are the agent's own files: an API server may keep its data beside
// them.
func fileItems(cfg Config) ([]Item, error) {
	var items []Item
	add := func(kind, path string) error {
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return fmt.Errorf("look for %s: %w", kind, err)
		}
		items = append(items, Item{Kind: kind, Name: path, remove: func() error {
			err := os.RemoveAll(path)
			_ = os.Remove(filepath.Dir(path)) // stays while others' files are in it
			return err
		}})
		return nil
	}
	var errs []error
	if cfg.Socket != "" {
		errs = append(errs, add("socket", cfg.Socket))
	}
	for _, name := range []string{"endpoints", "podcidr.json", "podcidr.json.new"} {
		if cfg.StateDir != "" {
			errs = append(errs, add("state", filepath.Join(cfg.StateDir, name)))
		}
	}
	for _, name := range []string{"enrolment.json", "tls.key.new", "tls.key", "tls.crt", "ca.crt"} {
		if cfg.TLSDir != "" {
			errs = append(errs, add("credentials", filepath.Join(cfg.TLSDir, name)))
		}
	}
	return items, errors.Join(errs...)
}

// settleFor is how long the kernel may take to free what nobody holds.
const settleFor = 5 * time.Second

// Run removes all that Find lists, looks again, and returns what it found with
// what became of it. The error joins what is left and could not be removed. An
// error of Refusal is returned, and nothing removed, unless cfg.Force. It blocks for
// up to some seconds.
func Run(ctx context.Context, cfg Config) ([]Item, error) {
	if !cfg.Force {
		if err := Refusal(ctx, cfg); err != nil {
			return nil, err
		}
	}
	items, err := Find(cfg)
	if err != nil {
		return nil, err
	}
	why := map[string]error{}
	for _, it := range items {
		if err := it.remove(); err != nil {
			why[it.key()] = err
		}
	}
	removeEmpty(filepath.Dir(cfg.PinPath))
	left, err := remains(ctx, cfg, items)
	if err != nil {
		return items, err
	}
	return judge(items, left, why)
}

// remains lists what is there still: found again, or held in the kernel.
func remains(ctx context.Context, cfg Config, items []Item) ([]Item, error) {
	ctx, cancel := context.WithTimeout(ctx, settleFor)
	defer cancel()
	const shortest, longest = 5 * time.Millisecond, 200 * time.Millisecond
	wait := backoff.New(shortest, longest)
	for {
		left, err := Find(cfg)
		if err != nil {
			return nil, err
		}
		for _, it := range items {
			if it.gone != nil && !it.gone() {
				left = append(left, it)
			}
		}
		if len(left) == 0 || wait.Wait(ctx) != nil {
			return left, nil
		}
	}
}

// judge says of each item what became of it. Items that came meanwhile are left.
func judge(items, left []Item, why map[string]error) ([]Item, error) {
	still := map[string]Item{}
	for _, l := range left {
		still[l.key()] = l
	}
	held := map[object][]string{}
	if len(left) > 0 {
		held = holders()
	}
	var errs []error
	report := func(it *Item) {
		it.Result = Left
		if err := why[it.key()]; err != nil {
			it.Why = err.Error()
		} else if who := held[object{it.Kind, it.ID}]; len(who) > 0 {
			it.Why = "held by " + strings.Join(who, ", ")
		}
		text := fmt.Sprintf("%s %s", it.Kind, it.Name)
		if it.Why != "" {
			text += ": " + it.Why
		}
		errs = append(errs, errors.New(text))
	}
	for i := range items {
		items[i].Result = Removed
		if _, is := still[items[i].key()]; is {
			report(&items[i])
			delete(still, items[i].key())
		}
	}
	for _, l := range left {
		if _, is := still[l.key()]; is {
			report(&l)
			items = append(items, l)
			delete(still, l.key())
		}
	}
	return items, errors.Join(errs...)
}

func (it Item) key() string { return fmt.Sprintf("%s %s %d", it.Kind, it.Name, it.ID) }

// removeEmpty removes the directory above the pins when no other agent's are
// there, and it is ours by name.
func removeEmpty(dir string) {
	if filepath.Base(dir) == pinParent {
		_ = os.Remove(dir) // stays while something is in it
	}
}

// pinParent is the directory of all agents' pins in a bpffs.
const pinParent = "hawser"
