// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/datapath/loader"
	"github.com/hawser-mesh/hawser/datapath/maps"
	"github.com/hawser-mesh/hawser/datapath/sockets"
	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// Values of Config.CgroupRoot beside a path.
const (
	CgroupAuto = "auto"
	CgroupOff  = "off"
)

// attachSockets balances services at the sockets of this node's processes where
// that can be done; elsewhere packets are balanced.
func (a *Agent) attachSockets() error {
	told := cmp.Or(a.cfg.CgroupRoot, CgroupAuto)
	root := told
	if root == CgroupOff {
		return a.dp.DetachSockets()
	}
	var err error
	if root == CgroupAuto {
		root, err = loader.CgroupRoot()
	}
	if err == nil {
		err = a.dp.AttachSockets(root)
	}
	if err != nil && told != CgroupAuto && !errors.Is(err, loader.ErrNoSockets) {
		return fmt.Errorf("--cgroup-root: %w", err)
	}
	if err != nil {
		a.log.Warn("services are balanced per packet only", "error", err)
	}
	return nil
}

// sweepEvery spaces the looks at the sockets. A socket that was given its
// backend while that went is found by the next one.
const sweepEvery = time.Second

// endSockets ends the sockets that are connected to backends which serve no
// longer, from when everything of the mesh is known until the context ends.
func (a *Agent) endSockets(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-a.complete:
	}
	changes := a.tables.Frontends.Subscribe()
	defer changes.Close()
	for again := true; ; {
		var next <-chan time.Time
		if again {
			next = time.After(sweepEvery)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-next:
			again = false
		case <-changes.C():
			changes.Take()
			again = true
		}
		err := a.sweepSockets()
		if errors.Is(err, unix.EOPNOTSUPP) {
			a.log.Warn("sockets to backends that are gone are not ended: the kernel has no SOCK_DESTROY (CONFIG_INET_DIAG_DESTROY)")
			return nil
		}
		if err != nil {
			a.log.Error("end sockets to backends that are gone", "error", err)
		}
	}
}

// sweepSockets looks at all sockets once.
func (a *Agent) sweepSockets() error {
	doomed := map[uint64]netip.AddrPort{}
	m := a.dp.Maps()
	err := maps.DumpBatches(m.SockLinks, func(cookie uint64, l maps.SockLink) {
		if !a.serves(l.Protocol, l.Service, l.ServicePort, l.Backend, l.BackendPort) {
			doomed[cookie] = netip.AddrPortFrom(l.Backend.Netip(), l.BackendPort.Uint16())
		}
	})
	var keys []maps.SockKey // of those that found no room there
	err = errors.Join(err, maps.DumpBatches(m.SockPeers, func(k maps.SockKey, v maps.SockPeer) {
		if v.Flags&maps.SockConnected != 0 && !a.serves(k.Protocol, v.Addr, v.Port, k.Addr, k.Port) {
			doomed[k.Cookie] = netip.AddrPortFrom(k.Addr.Netip(), k.Port.Uint16())
			keys = append(keys, k)
		}
	}))
	if err != nil || len(doomed) == 0 {
		return err
	}
	n, err := sockets.Destroy(doomed)
	for _, r := range a.endpoints.snapshot() {
		err = errors.Join(err, nsthread.InNetns(r.Netns, func() error {
			m, err := sockets.Destroy(doomed)
			n += m
			return err
		}))
	}
	if n > 0 {
		a.log.Info("ended sockets to backends that are gone", "sockets", n)
	}
	for _, k := range keys {
		_ = m.SockPeers.Delete(k) // or it stays until others push it out
	}
	for cookie := range doomed {
		_ = m.SockLinks.Delete(cookie)
	}
	return err
}

// serves reports whether a socket's backend still serves what it asked for.
func (a *Agent) serves(protocol uint8, service maps.Addr, servicePort maps.Port, backend maps.Addr, backendPort maps.Port) bool {
	row, ok := a.tables.Frontends.Get(datapath.FrontendKey{
		Addr: service.Netip(), Port: servicePort.Uint16(), Protocol: protocol,
	})
	return ok && row.Has(backend.Netip(), backendPort.Uint16())
}
