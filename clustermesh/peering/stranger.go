// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
)

const (
	// federationPort is where API servers are dialled unless somebody chose
	// another port.
	federationPort = 4243
	// Within strangerWindow at most strangerDials endpoints are tried for
	// strangers.
	strangerWindow = 10 * time.Second
	strangerDials  = 2 * maxReach
)

// strangers tries, for somebody who has no more than a token, whether it can be
// dialled from here. It must be of no use for looking around in our network: only
// addresses at which the caller says its nodes are, or from which it calls, are
// dialled, only where API servers listen, not often; and what is not the caller's
// own API server looks the same whether it is closed, open or something else.
type strangers struct {
	trust *Trust
	now   func() time.Time

	mu    sync.Mutex
	since time.Time
	spent int
}

// check is the preflight's finding on the reach of the endpoints of a cluster
// that calls from an address.
func (s *strangers) check(ctx context.Context, c *keyspacev1.Cluster, bundle []*x509.Certificate, from net.Addr, own []string) []*federationv1.Finding {
	f := &findings{peer: c.GetName()}
	var try []string
	for _, ep := range c.GetEndpoints()[:min(len(c.GetEndpoints()), maxReach)] {
		if !mayTry(ep, c.GetNodeCidrs(), from, own) {
			f.add(false, "reach", fmt.Sprintf("its federation endpoint %s was not tried from here: for a stranger only addresses in its node ranges are, or the one that it joins from, at the port of API servers", ep),
				"once it is a peer: hawser mesh preflight "+c.GetName())
			continue
		}
		try = append(try, ep)
	}
	if len(try) == 0 {
		return f.list
	}
	if !s.spend(len(try)) {
		f.add(false, "reach", "whether it answers from here was not tried: this was asked too often", fmt.Sprintf("ask again in %s", strangerWindow))
		return f.list
	}
	end := time.NewTimer(reachTimeout)
	defer end.Stop()
	failed := false
	for i, err := range dialAll(ctx, try, s.config(c.GetName(), bundle)) {
		if err != nil {
			failed = true
			f.add(false, "reach", fmt.Sprintf("its API server does not answer at its federation endpoint %s from here", try[i]), openPort)
		}
	}
	if failed { // how long it took tells nothing either
		select {
		case <-end.C:
		case <-ctx.Done():
		}
	}
	return f.list
}

// config accepts the cluster's API server alone.
func (s *strangers) config(name string, bundle []*x509.Certificate) *tls.Config {
	c := s.trust.base()
	c.ServerName = JoinServerName
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return s.trust.creds.Certificate() }
	c.InsecureSkipVerify = true // no host names here: VerifyConnection does it all
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		chain := slices.DeleteFunc(slices.Clone(cs.PeerCertificates), func(c *x509.Certificate) bool { return c.IsCA })
		return verifyAgainst(chain, name, bundle, s.now())
	}
	return c
}

// spend takes dials out of the window's budget, if they are there.
func (s *strangers) spend(n int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := s.now(); now.Sub(s.since) >= strangerWindow {
		s.since, s.spent = now, 0
	}
	if s.spent+n > strangerDials {
		return false
	}
	s.spent += n
	return true
}

// mayTry says whether an endpoint is dialled for a stranger. Names are not: whom
// they mean is the stranger's to say, too.
func mayTry(endpoint string, nodes []string, from net.Addr, own []string) bool {
	host, text, err := net.SplitHostPort(endpoint)
	if err != nil {
		return false
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	if tcp, ok := from.(*net.TCPAddr); ok && tcp.AddrPort().Addr().Unmap() == addr.Unmap() {
		return true // whoever calls from there is there
	}
	port, err := strconv.ParseUint(text, 10, 16)
	usual := port == federationPort || slices.ContainsFunc(own, func(ep string) bool {
		_, p, err := net.SplitHostPort(ep)
		return err == nil && p == text
	})
	return err == nil && usual && slices.ContainsFunc(nodes, func(s string) bool {
		p, err := netip.ParsePrefix(s)
		return err == nil && CheckRange(p) == nil && p.Contains(addr)
	})
}
