// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	wire "github.com/miekg/dns"

	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// upstreamPort is where the played resolver of scripts is, on the first
// cluster's gateway in the fabric; the labs' nodes forward to it.
const upstreamPort = 5300

// cmdDNS is `dns CLUSTER/POD udp|tcp NAME TYPE CODE [VALUE…]`: the server of the
// pod's node answers with this code and exactly these values. NAME may be
// reverse:ADDRESS.
func cmdDNS(s *script, args []string) (string, error) {
	if len(args) < 5 {
		return "", usage("dns CLUSTER/POD udp|tcp NAME TYPE CODE [VALUE…]")
	}
	from, err := s.place(args[0])
	if err != nil {
		return "", err
	}
	if from.pod == nil {
		return "", usage("dns CLUSTER/POD …")
	}
	at := netip.AddrPortFrom(s.world.nodes[from.node].Address, 53)
	name := wire.Fqdn(args[2])
	if a, ok := strings.CutPrefix(args[2], "reverse:"); ok {
		if name, err = wire.ReverseAddr(a); err != nil {
			return "", err
		}
	}
	q := new(wire.Msg).SetQuestion(name, wire.StringToType[args[3]])
	var r *wire.Msg
	err = nsthread.InNetns(from.netns, func() error {
		// Nothing of an exchange leaves this thread.
		conn, err := net.DialTimeout(args[1], at.String(), patience)
		if err != nil {
			return err
		}
		defer conn.Close()
		r, _, err = (&wire.Client{Net: args[1], Timeout: patience}).ExchangeWithConn(q, &wire.Conn{Conn: conn})
		return err
	})
	if err != nil {
		return "", no("%s asks %s for %s over %s: %v", args[0], at, args[2], args[1], err)
	}
	got := []string{wire.RcodeToString[r.Rcode]}
	for _, rr := range r.Answer {
		got = append(got, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	want := args[4:]
	slices.Sort(got[1:])
	slices.Sort(want[1:])
	if !slices.Equal(got, want) {
		return "", no("%s %s for %s is %v, want %v", args[2], args[3], args[0], got, want)
	}
	return fmt.Sprintln(got), nil
}

// cmdUpstream is `upstream start` and `upstream stop`: a resolver outside the
// mesh that knows outside.example, 192.0.2.53.
func cmdUpstream(s *script, args []string) (string, error) {
	if len(args) != 1 || args[0] != "start" && args[0] != "stop" {
		return "", usage("upstream start|stop")
	}
	if s.upstream != nil {
		s.upstream()
	}
	if args[0] == "stop" {
		return "", nil
	}
	fabric, err := s.place("fabric")
	if err != nil {
		return "", err
	}
	at := netip.AddrPortFrom(s.world.lab.Clusters()[0].Gateway, upstreamPort).String()
	var pc net.PacketConn
	var lis net.Listener
	err = nsthread.InNetns(fabric.netns, func() error {
		if pc, err = net.ListenPacket("udp", at); err != nil {
			return err
		}
		lis, err = net.Listen("tcp", at)
		return err
	})
	if err != nil {
		return "", err
	}
	servers := []*wire.Server{{PacketConn: pc, Handler: wire.HandlerFunc(playUpstream)}, {Listener: lis, Handler: wire.HandlerFunc(playUpstream)}}
	for _, srv := range servers {
		up := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(up) }
		go func() { _ = srv.ActivateAndServe() }()
		<-up
	}
	s.upstream = func() {
		s.upstream = nil
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = errors.Join(servers[0].ShutdownContext(ctx), servers[1].ShutdownContext(ctx))
	}
	s.ts.Defer(func() {
		if s.upstream != nil {
			s.upstream()
		}
	})
	return "", nil
}

func playUpstream(w wire.ResponseWriter, q *wire.Msg) {
	r := new(wire.Msg).SetReply(q)
	if strings.EqualFold(q.Question[0].Name, "outside.example.") {
		if q.Question[0].Qtype == wire.TypeA {
			rr, _ := wire.NewRR(q.Question[0].Name + " 5 IN A 192.0.2.53")
			r.Answer = []wire.RR{rr}
		}
	} else {
		r.Rcode = wire.RcodeNameError
	}
	_ = w.WriteMsg(r)
}
