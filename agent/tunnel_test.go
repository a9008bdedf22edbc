// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/hawser-mesh/hawser/datapath/netdev"
)

func TestChooseTunnel(t *testing.T) {
	const yes, no, unknown = "yes", "no", "unknown"
	for name, c := range map[string]struct {
		asked, underlay, kernel string
		want                    string // or the error
	}{
		"a card":                         {"", "device", yes, TunnelNetdev},
		"a card, said":                   {TunnelAuto, "device", yes, TunnelNetdev},
		"a bond":                         {TunnelAuto, "bond", yes, TunnelNetdev},
		"a veth":                         {TunnelAuto, "veth", yes, TunnelEBPF},
		"no VXLAN in the kernel":         {TunnelAuto, "device", no, TunnelEBPF},
		"nobody knows":                   {TunnelAuto, "device", unknown, TunnelEBPF},
		"asked for eBPF":                 {TunnelEBPF, "device", yes, TunnelEBPF},
		"asked for the kernel on a veth": {TunnelNetdev, "veth", yes, TunnelNetdev},
		"asked for what is not there":    {TunnelNetdev, "device", no, "module vxlan"},
		"asked for, nobody knows":        {TunnelNetdev, "device", unknown, "probing failed"},
	} {
		var said bytes.Buffer
		way, why, err := chooseTunnel(c.asked, c.underlay, func() (bool, error) {
			if c.kernel == unknown {
				return false, errors.New("probing failed")
			}
			return c.kernel == yes, nil
		}, slog.New(slog.NewTextHandler(&said, nil)))
		warned := strings.Contains(said.String(), "level=WARN") && strings.Contains(said.String(), "probing failed") && strings.Contains(said.String(), "--tunnel-datapath=")
		if want := c.kernel == unknown && c.asked != TunnelNetdev; warned != want {
			t.Errorf("%s: said %q", name, said.String())
		}
		if err == nil && (way != c.want || why == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q because %q, %v; want %s", name, way, why, err, c.want)
		}
		if c.want == "module vxlan" && (!errors.Is(err, netdev.ErrNoVXLAN) || !strings.Contains(err.Error(), "--tunnel-datapath=ebpf")) {
			t.Errorf("%s: %v does not say what to do", name, err)
		}
	}
}

func TestTunnelDatapathIsChecked(t *testing.T) {
	for value, ok := range map[string]bool{"": true, TunnelAuto: true, TunnelNetdev: true, TunnelEBPF: true, "kernel": false} {
		err := (&Config{TunnelDatapath: value}).Validate()
		if got := !strings.Contains(err.Error(), "--tunnel-datapath"); got != ok {
			t.Errorf("%q: %v", value, err)
		}
	}
}

func TestTunnelDeviceTrouble(t *testing.T) {
	var m tunnelMake
	var said bytes.Buffer
	log := slog.New(slog.NewTextHandler(&said, nil))
	m.note(nil, log)
	if p := m.problems(); len(p) != 0 {
		t.Errorf("nothing is wrong: %v", p)
	}
	m.note(netdev.ErrPortInUse, log)
	if p := m.problems(); len(p) != 1 || !strings.Contains(p[0].GetProblem(), "in use") || !strings.Contains(p[0].GetObject(), netdev.TunnelDevice) || p[0].GetFix() == "" {
		t.Errorf("the port is in use: %v", p)
	}
	for range 3 { // rounds
		m.note(errors.New("no such program"), log)
	}
	m.note(nil, log)
	if p := m.problems(); len(p) != 0 {
		t.Errorf("it is there again: %v", p)
	}
	if n := strings.Count(said.String(), "level=ERROR"); n != 2 || !strings.Contains(said.String(), "no such program") {
		t.Errorf("two errors are told in %d lines: %s", n, said.String())
	}
}

func TestHostDeviceTrouble(t *testing.T) {
	var h hostPair
	if p := h.problems(); len(p) != 0 {
		t.Errorf("nothing is wrong: %v", p)
	}
	h.lost.note(netdev.HostDevice, errors.New("add veth pair: with index 7: file exists"), slog.New(slog.DiscardHandler))
	if p := h.problems(); len(p) != 1 || p[0].GetObject() != "device hawser_host" || !strings.Contains(p[0].GetProblem(), "index 7") || !strings.Contains(p[0].GetFix(), "restart the agent") {
		t.Errorf("it cannot be made: %v", p)
	}
	h.lost.note(netdev.HostDevice, nil, slog.New(slog.DiscardHandler))
	if p := h.problems(); len(p) != 0 {
		t.Errorf("it is there again: %v", p)
	}
}
