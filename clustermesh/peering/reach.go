// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	reachTimeout = time.Second
	maxReach     = 8 // endpoints that are tried for one preflight
)

// checkReach tries the federation endpoints of the other side for somebody who is
// of this one. One direction is enough for a mesh, so that what does not answer is
// a warning.
func checkReach(ctx context.Context, peer string, endpoints []string, cfg *tls.Config) []*federationv1.Finding {
	f := &findings{peer: peer}
	endpoints = endpoints[:min(len(endpoints), maxReach)]
	for i, err := range dialAll(ctx, endpoints, cfg) {
		if err != nil {
			f.unreached(endpoints[i], err)
		}
	}
	return f.list
}

const openPort = "open the port (4243/tcp by default) from this side too; until then only the other side can dial, and streams come back later after a fault"

// dialAll shakes hands with all endpoints at once.
func dialAll(ctx context.Context, endpoints []string, cfg *tls.Config) []error {
	errs := make([]error, len(endpoints))
	var wg sync.WaitGroup
	for i, ep := range endpoints {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, reachTimeout)
			defer cancel()
			c, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", ep)
			if errs[i] = err; err == nil {
				_ = c.Close()
			}
		})
	}
	wg.Wait()
	return errs
}

func (f *findings) unreached(endpoint string, err error) {
	f.add(false, "reach", fmt.Sprintf("its federation endpoint %s does not answer from here: %v", endpoint, err), openPort)
}

// checkPathMTU compares what the kernel knows of the way to the other side's API
// server with what the own nodes may send. The nodes' ways are not known before
// the join; hawser mesh doctor looks at those.
func checkPathMTU(peer string, conn net.Conn, nodes uint32) []*federationv1.Finding {
	f := &findings{peer: peer}
	path, ok := pathMTU(conn)
	if !ok || nodes == 0 || uint32(path) >= nodes {
		return nil
	}
	f.add(false, "path-mtu", fmt.Sprintf("the way to it carries packets of %d bytes, this cluster's nodes send up to %d", path, nodes),
		"if the nodes' way is the same one, lower the MTU of their underlay devices, or raise that of the way")
	return f.list
}

func pathMTU(conn net.Conn) (int, bool) {
	for {
		inner, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = inner.NetConn()
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return 0, false
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return 0, false
	}
	mtu := 0
	if cerr := raw.Control(func(fd uintptr) { mtu, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU) }); cerr != nil || err != nil {
		return 0, false
	}
	return mtu, mtu > 0
}

// nodeMTU is the largest MTU of the own nodes' underlay; 0 when there are none.
func (s *Store) nodeMTU(ctx context.Context) uint32 {
	var most uint32
	after := ""
	for {
		page, err := s.kv.List(ctx, kvstore.KindPrefix(kvstore.State, s.own, kvstore.KindNode), after, 500, 0)
		if err != nil {
			return most
		}
		for _, kv := range page.KVs {
			n := &keyspacev1.Node{}
			if proto.Unmarshal(kv.Value, n) == nil {
				most = max(most, n.GetMtu())
			}
			after = kv.Key
		}
		if !page.More {
			return most
		}
	}
}
