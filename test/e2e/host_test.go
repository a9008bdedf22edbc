// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// cmdHost prints what a lab must not change on this machine: /etc/hosts,
// routes, rules, and network sysctls.
func cmdHost(_ *script, args []string) (string, error) {
	if len(args) != 0 {
		return "", usage("host")
	}
	var out strings.Builder
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil {
		return "", err
	}
	fmt.Fprintf(&out, "%s\n", hosts)
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{}, 0)
	if err != nil {
		return "", err
	}
	for _, r := range routes {
		fmt.Fprintln(&out, r)
	}
	rules, err := netlink.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return "", err
	}
	for _, r := range rules {
		fmt.Fprintln(&out, r)
	}
	values, err := sysctls()
	for _, name := range slices.Sorted(maps.Keys(values)) {
		fmt.Fprintf(&out, "%s=%s\n", name, values[name])
	}
	return out.String(), err
}

// sysctls are the network's, but those of devices, which come and go, and those
// that count.
func sysctls() (map[string]string, error) {
	const root = "/proc/sys/net"
	counts := regexp.MustCompile(`/(conf|neigh)/[^/]+/|_count$|/tcp_(probe|fastopen_key)|/stats$`)
	general := regexp.MustCompile(`/(conf|neigh)/(all|default|lo)/`)
	values := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || counts.MatchString(path) && !general.MatchString(path) {
			return nil //nolint:nilerr // a device that went
		}
		if raw, err := os.ReadFile(path); err == nil { // some can only be written
			values[strings.TrimPrefix(path, root+"/")] = strings.TrimSpace(string(raw))
		}
		return nil
	})
	if len(values) < 100 {
		return nil, fmt.Errorf("read only %d sysctls", len(values))
	}
	return values, err
}

// cmdPins is `pins NODE`: prints the id of every pinned map, program and link,
// once each pod's program has its link.
func cmdPins(s *script, args []string) (string, error) {
	if len(args) != 1 || s.world.nodes[args[0]] == nil {
		return "", usage("pins NODE")
	}
	n := s.world.nodes[args[0]]
	root := n.PinPath
	if err := settled(n.Netns, filepath.Join(root, "links")); err != nil {
		return "", err
	}
	var lines []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		id, err := pinID(path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		rel, err := filepath.Rel(root, path)
		lines = append(lines, fmt.Sprintf("%s %s", rel, id))
		return err
	})
	if len(lines) < 10 {
		err = errors.Join(err, fmt.Errorf("only %d objects are pinned below %s", len(lines), root))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n") + "\n", err
}

// settled waits until the programs of all pods of a node are attached by links,
// which new pods' are a second later.
func settled(netns, links string) error {
	return settledWhile(context.Background(), netns, links)
}

// settledWhile is settled that gives up when the context ends.
func settledWhile(ctx context.Context, netns, links string) error {
	const poll, most = 100 * time.Millisecond, 30 * time.Second
	for end := time.Now().Add(most); ctx.Err() == nil; time.Sleep(poll) {
		missing, err := filtered(netns, links)
		if err != nil || len(missing) == 0 {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("after %s still without a link: %s", most, strings.Join(missing, ", "))
		}
	}
	return ctx.Err()
}

// filtered are the pods' devices without a pinned link.
func filtered(netns, links string) (missing []string, err error) {
	err = nsthread.InNetns(netns, func() error {
		devices, err := netlink.LinkList()
		for _, d := range devices {
			name := d.Attrs().Name
			if !strings.HasPrefix(name, "hwp") {
				continue
			}
			if _, err := os.Stat(filepath.Join(links, "from_pod@"+name)); err != nil {
				missing = append(missing, name)
			}
		}
		return err
	})
	return missing, err
}

func pinID(path string) (string, error) {
	switch filepath.Base(filepath.Dir(path)) {
	case "links":
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return "", err
		}
		defer l.Close()
		info, err := l.Info()
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("link %d", info.ID), nil
	case "programs":
		p, err := ebpf.LoadPinnedProgram(path, nil)
		if err != nil {
			return "", err
		}
		defer p.Close()
		info, err := p.Info()
		if err != nil {
			return "", err
		}
		id, _ := info.ID()
		return fmt.Sprintf("program %d", id), nil
	}
	m, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return "", err
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		return "", err
	}
	id, _ := info.ID()
	return fmt.Sprintf("map %d", id), nil
}

// cmdPeers is `peers NODE PORT`: prints with whom processes of the node have, or
// try to have, TCP connections to that port.
func cmdPeers(s *script, args []string) (string, error) {
	if len(args) != 2 {
		return "", usage("peers NODE PORT")
	}
	p, err := s.place(args[0])
	if err != nil {
		return "", err
	}
	port, err := strconv.ParseUint(args[1], 10, 16)
	if err != nil {
		return "", err
	}
	found := map[string]bool{}
	err = nsthread.InNetns(p.netns, func() error {
		for _, file := range []string{"tcp", "tcp6"} {
			if err := remotes("/proc/thread-self/net/"+file, uint16(port), found); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	return strings.Join(slices.Sorted(maps.Keys(found)), "\n") + "\n", err
}

// remotes reads /proc/net/tcp: addresses are words in the machine's byte order.
func remotes(path string, port uint16, found map[string]bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for in := bufio.NewScanner(f); in.Scan(); {
		fields := strings.Fields(in.Text())
		if len(fields) < 4 || fields[0] == "sl" {
			continue
		}
		address, hexPort, _ := strings.Cut(fields[2], ":")
		n, err := strconv.ParseUint(hexPort, 16, 16)
		if err != nil || uint16(n) != port {
			continue
		}
		raw, err := hex.DecodeString(address)
		if err != nil {
			return err
		}
		for i := 0; i+4 <= len(raw); i += 4 {
			slices.Reverse(raw[i : i+4])
		}
		a, _ := netip.AddrFromSlice(raw)
		found[a.Unmap().String()] = true
	}
	return nil
}
