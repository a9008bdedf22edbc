// SPDX-License-Identifier: Apache-2.0

package netdev_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath/netdev"
	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// A pod's device is gone when its namespace or it was removed, and only then: not
// when it got another name, or is in another namespace.
func TestPodGone(t *testing.T) {
	inNode(t, func(pod string) error {
		other := pod + "-other"
		if err := nsthread.CreateNetns(other); err != nil {
			return err
		}
		defer func() {
			if err := nsthread.DeleteNetns(other); err != nil {
				t.Error(err)
			}
		}()
		removed, err := netdev.WatchRemoved(t.Context())
		if err != nil {
			return err
		}
		dev, err := netdev.EnsurePod(podConfig(pod))
		if err != nil {
			return err
		}
		want := func(step, netns string, want bool) {
			t.Helper()
			if gone, err := netdev.PodGone(dev, netns); err != nil || gone != want {
				t.Errorf("%s: gone %v, %v", step, gone, err)
			}
		}
		want("made", pod, false)
		want("made, its namespace is not known", "", false)
		host, err := netlink.LinkByIndex(dev.IfIndex)
		if err != nil {
			return err
		}
		// A name can only be given to a device that is down.
		if err := firstOf(netlink.LinkSetDown(host), netlink.LinkSetName(host, "renamed"), netlink.LinkSetUp(host)); err != nil {
			return err
		}
		want("renamed", pod, false)
		if err := moveTo(host, other); err != nil {
			return err
		}
		want("moved away", pod, false)
		want("moved away from a pod that is another", other, true)
		if err := removedIs(removed, dev.IfIndex); err != nil {
			return fmt.Errorf("moved away: %w", err)
		}

		if dev, err = netdev.EnsurePod(podConfigOf(pod, "eth1")); err != nil {
			return err
		}
		want("a second one", pod, false)
		if err := netdev.DeletePod(dev.HostDevice); err != nil {
			return err
		}
		want("removed by hand", pod, true)
		if err := removedIs(removed, dev.IfIndex); err != nil {
			return fmt.Errorf("removed by hand: %w", err)
		}

		if dev, err = netdev.EnsurePod(podConfigOf(pod, "eth2")); err != nil {
			return err
		}
		want("a third one", pod, false)
		if err := nsthread.DeleteNetns(pod); err != nil {
			return err
		}
		if err := removedIs(removed, dev.IfIndex); err != nil {
			return fmt.Errorf("namespace removed: %w", err)
		}
		want("namespace removed", pod, true)
		want("a namespace that is none", "/proc/self/status", true)
		return nil
	})
}

func podConfigOf(pod, ifName string) netdev.PodConfig {
	cfg := podConfig(pod)
	cfg.IfName = ifName
	return cfg
}

func firstOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func moveTo(link netlink.Link, netns string) error {
	fd, err := unix.Open(netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	return netlink.LinkSetNsFd(link, fd)
}

// removedIs waits until a device is told to have left.
func removedIs(removed <-chan int, index int) error {
	deadline := time.After(10 * time.Second)
	for {
		select {
		case got, ok := <-removed:
			if !ok {
				return fmt.Errorf("the watch ended before it told of device %d", index)
			}
			if got == index {
				return nil
			}
		case <-deadline:
			return fmt.Errorf("nothing told that device %d left", index)
		}
	}
}
