// SPDX-License-Identifier: Apache-2.0

package loader_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath/loader"
)

// On a kernel without TCX the same programs are clsact filters: they carry
// traffic, outlive the agent, and a later agent may change to links and back
// without an open connection noticing.
func TestClsactFallback(t *testing.T) {
	w := newWorldWith(t, loader.AttachClsact)
	if mode := w.agents[0].d.AttachMode(); mode != loader.AttachClsact {
		t.Fatalf("attached by %s", mode)
	}
	if links, err := w.agents[0].d.Attachments(); err != nil || len(links) != 0 {
		t.Fatalf("clsact made links: %v, %v", links, err)
	}
	serve(t, w.pods[1], 8080)
	ping(t, w.pods[0], ips(1))
	ping(t, w.nodes[0].ns, ips(1))
	c := dial(t, w.pods[0], ips(1), 8080)
	for _, attach := range []string{loader.AttachClsact, loader.AttachTCX, loader.AttachClsact} {
		w.agents[0].stop(t)
		if err := echo(c, "no agent", 5*time.Second); err != nil {
			t.Fatal(err)
		}
		w.agents[0] = startAgentWith(t, attach, w.nodes[0], w.tables(0), w.eps[0].Device)
		w.agents[0].wait(t)
		if mode := w.agents[0].d.AttachMode(); mode != attach {
			t.Errorf("attached by %s, want %s", mode, attach)
		}
		if err := echo(c, attach, 5*time.Second); err != nil {
			t.Fatal(err)
		}
		links, err := w.agents[0].d.Attachments()
		if err != nil || (len(links) == 0) != (attach == loader.AttachClsact) {
			t.Errorf("%s has links %v, %v", attach, links, err)
		}
	}
}

// A filter that is there with its program stays as it is; one that somebody removed
// comes back.
func TestFilterIsAttachedOnce(t *testing.T) {
	w := newWorldWith(t, loader.AttachClsact)
	a := w.agents[0]
	inNS(t, w.nodes[0].ns, func() error {
		told, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_TC)
		if err != nil {
			return err
		}
		defer told.Close()
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		// Removing it is the last that is told.
		remove := func() error {
			filters, err := netlink.FilterList(l, netlink.HANDLE_MIN_INGRESS)
			if err != nil || len(filters) != 1 {
				return fmt.Errorf("filters %v, %w", filters, err)
			}
			return netlink.FilterDel(filters[0])
		}
		added := func() (n int, err error) {
			for {
				msgs, _, err := told.Receive()
				if err != nil {
					return 0, err
				}
				for _, m := range msgs {
					switch m.Header.Type {
					case unix.RTM_NEWTFILTER:
						n++
					case unix.RTM_DELTFILTER:
						return n, nil
					}
				}
			}
		}
		for i, want := range []int{0, 1} {
			if err := errors.Join(a.d.AttachUnderlay(), a.d.AttachUnderlay(), remove()); err != nil {
				return err
			}
			if n, err := added(); err != nil || n != want {
				t.Errorf("round %d: attached %d times, want %d, %v", i, n, want, err)
			}
		}
		return nil
	})
}

// A new endpoint has a filter at once. It becomes a link later, without an open
// connection noticing, and the filter goes; an endpoint that went before has
// neither.
func TestSettle(t *testing.T) {
	w := newWorld(t)
	a, dev := w.agents[0], w.eps[0].Device
	if n := w.filters(t, dev); n != 1 {
		t.Fatalf("a new endpoint has %d filters", n)
	}
	if slices.ContainsFunc(w.links(t), func(l loader.Attachment) bool { return l.Device == dev }) {
		t.Fatal("a new endpoint has a link at once")
	}
	serve(t, w.pods[1], 8080)
	c := dial(t, w.pods[0], ips(1), 8080)
	_, gone := newPod(t, w.nodes[0], 12, "10.1.0.9", "fd00:10:1::9")
	_, last := newPod(t, w.nodes[0], 13, "10.1.0.10", "fd00:10:1::10")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	inNS(t, w.nodes[0].ns, func() error {
		return errors.Join(a.d.AttachEndpoint(gone.Device), a.d.AttachEndpoint(last.Device),
			a.d.DetachEndpoint(gone.Device))
	})
	go func() {
		settled := func(l loader.Attachment) bool { return l.Device == last.Device }
		for ctx.Err() == nil && !slices.ContainsFunc(w.links(t), settled) {
			if err := echo(c, "while it settles", 5*time.Second); err != nil {
				t.Error(err)
			}
		}
		cancel()
	}()
	inNS(t, w.nodes[0].ns, func() error { return a.d.RunSettle(ctx) })
	if err := echo(c, "with a link", 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if n := w.filters(t, dev); n != 0 {
		t.Errorf("a settled endpoint has %d filters", n)
	}
	for _, l := range w.links(t) {
		if l.Device == gone.Device {
			t.Errorf("a detached endpoint has link %+v", l)
		}
	}
	if n := w.filters(t, gone.Device); n != 0 {
		t.Errorf("a detached endpoint has %d filters", n)
	}
}

func (w *world) links(t *testing.T) []loader.Attachment {
	t.Helper()
	links, err := w.agents[0].d.Attachments()
	if err != nil {
		t.Error(err)
	}
	return links
}

// filters counts the eBPF filters on the ingress of a device of the first node.
func (w *world) filters(t *testing.T, dev string) (n int) {
	t.Helper()
	inNS(t, w.nodes[0].ns, func() error {
		l, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		filters, err := netlink.FilterList(l, netlink.HANDLE_MIN_INGRESS)
		for _, f := range filters {
			if _, ok := f.(*netlink.BpfFilter); ok {
				n++
			}
		}
		return err
	})
	return n
}
