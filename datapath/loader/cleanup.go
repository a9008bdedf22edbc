// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// Cleanup detaches and unpins everything under a pin path, and reports an error
// if anything is left. Traffic of the node's pods stops. Filters of the clsact
// make are removed from devices of the current network namespace.
func Cleanup(pinPath string) error {
	pins, err := linkPins(pinPath)
	if err != nil {
		return err
	}
	var errs []error
	for _, pin := range pins {
		l, err := link.LoadPinnedLink(pin, nil)
		if err == nil {
			_ = l.Detach() // also where someone else holds the link open
			_ = l.Close()
		}
		errs = append(errs, os.Remove(pin))
	}
	errs = append(errs, removeFilters())
	if err := os.RemoveAll(pinPath); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("clean up %s: %w", pinPath, err)
	}
	if left, _ := filepath.Glob(filepath.Join(pinPath, "*", "*")); len(left) != 0 {
		return fmt.Errorf("clean up %s: still there: %v", pinPath, left)
	}
	return nil
}

func removeFilters() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list devices: %w", err)
	}
	var errs []error
	for _, l := range links {
		filters, err := netlink.FilterList(l, netlink.HANDLE_MIN_INGRESS)
		if err != nil {
			continue // the device went meanwhile
		}
		for _, f := range filters {
			b, ok := f.(*netlink.BpfFilter)
			if ok && f.Attrs().Handle == filterHandle {
				errs = append(errs, removeFilter(b.Name, l.Attrs().Name))
			}
		}
	}
	return errors.Join(errs...)
}
