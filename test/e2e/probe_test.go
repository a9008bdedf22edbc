// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// How long a probe waits: for an answer that must come, on a machine that is
// busy, and for one that must not, until it is called silence.
const (
	patience = 4 * time.Second
	silence  = 900 * time.Millisecond
)

// Source ports of probes, below those that the kernel gives out.
const (
	firstPort = 20000
	ports     = 12000
)

// probe is one question from one place to another.
type probe struct {
	from, to place
	protocol string // tcp, udp or icmp
	port     uint16
	source   uint16 // port, known before so that events can be told apart
	size     int    // of a datagram, or of what is echoed
	wait     time.Duration
}

// newProbe reads FROM TO PROTOCOL[/PORT[/BYTES]]; an echo has no port: icmp//BYTES.
func (s *script) newProbe(args []string) (probe, error) {
	const datagram = 32
	p := probe{wait: patience, size: datagram}
	var err error
	if p.from, err = s.place(args[0]); err != nil {
		return p, err
	}
	if p.to, err = s.place(args[1]); err != nil {
		return p, err
	}
	var port string
	p.protocol, port, _ = strings.Cut(args[2], "/")
	port, size, sized := strings.Cut(port, "/")
	if sized {
		if p.size, err = strconv.Atoi(size); err != nil {
			return p, fmt.Errorf("%q: no size", size)
		}
	}
	if p.protocol != "icmp" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return p, fmt.Errorf("%q: give tcp/PORT, udp/PORT or icmp", args[2])
		}
		p.port = uint16(n)
	}
	p.source = uint16(firstPort + s.nextPort.Add(1)%ports)
	return p, nil
}

// ask sends and wants an answer. errSilence is none at all; other errNo are
// refusals.
func (p probe) ask() error {
	return nsthread.InNetns(p.from.netns, func() error {
		var err error
		switch p.protocol {
		case "tcp":
			err = p.askTCP()
		case "udp":
			err = p.askUDP()
		case "icmp":
			err = p.ping()
		default:
			return fmt.Errorf("no protocol %q", p.protocol)
		}
		var ne net.Error
		switch {
		case err == nil:
			return nil
		case errors.As(err, &ne) && ne.Timeout(), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.EAGAIN):
			return &errNo{noAnswer}
		case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EHOSTUNREACH),
			errors.Is(err, syscall.EACCES), errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EMSGSIZE), errors.Is(err, io.EOF):
			return no("%v", err)
		}
		return err
	})
}

const noAnswer = "no answer"

func isSilence(err error) bool { return err != nil && err.Error() == noAnswer }

// dial must run on the thread of the namespace; one address keeps it there.
func (p probe) dial() (net.Conn, error) {
	d := net.Dialer{Timeout: p.wait}
	d.SetMultipathTCP(false)
	local := netip.AddrPortFrom(netip.IPv4Unspecified(), p.source)
	if p.to.addr.Is6() {
		local = netip.AddrPortFrom(netip.IPv6Unspecified(), p.source)
	}
	if p.from.bound {
		local = netip.AddrPortFrom(p.from.addr, p.source)
	}
	if d.LocalAddr = net.TCPAddrFromAddrPort(local); p.protocol == "udp" {
		d.LocalAddr = net.UDPAddrFromAddrPort(local)
	}
	c, err := d.DialContext(context.Background(), p.protocol, netip.AddrPortFrom(p.to.addr, p.port).String())
	if err != nil {
		return nil, err
	}
	return c, c.SetDeadline(time.Now().Add(p.wait))
}

// webPort is the demo's; all other ports are asked as `lab workload load-server`
// answers.
const webPort = 8080

func (p probe) askTCP() error {
	if p.port == webPort || p.port == 80 {
		_, err := p.fetch()
		return err
	}
	c, err := p.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	if p.port != loadPort {
		return nil // etcd and others: that it accepts is the answer
	}
	message := make([]byte, 65)
	message[0] = 'R'
	if _, err := c.Write(message); err != nil {
		return err
	}
	_, err = io.ReadFull(c, message[:64])
	return err
}

// get asks `lab workload echo` on an open connection and returns its answer.
func get(c net.Conn, r *bufio.Reader) (string, error) {
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: test\r\n\r\n"); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// fetch asks `lab workload echo` once, on a connection of its own.
func (p probe) fetch() (string, error) {
	c, err := p.dial()
	if err != nil {
		return "", err
	}
	defer c.Close()
	return get(c, bufio.NewReader(c))
}

func (p probe) askUDP() error {
	c, err := p.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, p.size)); err != nil {
		return err
	}
	n, err := c.Read(make([]byte, p.size))
	if err == nil && n != p.size {
		return no("%d of %d bytes came back", n, p.size)
	}
	return err
}

// cmdReach is `reach FROM TO PROTOCOL[/PORT]`: it must be answered.
func cmdReach(s *script, args []string) (string, error) {
	if len(args) != 3 {
		return "", usage("reach FROM TO tcp/PORT|udp/PORT|icmp")
	}
	p, err := s.newProbe(args)
	if err != nil {
		return "", err
	}
	s.count("probes", 1)
	return "", p.ask()
}

// cmdDenied is `denied FROM TO PROTOCOL[/PORT] [WHAT=…]…`: from some moment on
// nothing is answered, and the drop is reported and counted as it should be.
func cmdDenied(s *script, args []string) (string, error) {
	const help = "denied FROM TO tcp/PORT|udp/PORT|icmp [reason=…] [node=…] [origin=…] [identity=…]"
	if len(args) < 3 {
		return "", usage(help)
	}
	var mark int
	var before uint64
	x := expectedDrop{reason: "policy denied"}
	probe, err := s.newProbe(args[:3])
	if err != nil {
		return "", err
	}
	if x.node = probe.to.node; x.node == "" {
		x.node = probe.from.node
	}
	if err := x.options(args[3:], help); err != nil {
		return "", err
	}
	const limit = 20 * time.Second
	err = within(limit, func() error {
		if err := s.world.events.follows(x.node); err != nil {
			return err
		}
		if before, err = s.world.drops(x.node, x.reason); err != nil {
			return err
		}
		mark = s.world.events.mark()
		if probe, err = s.newProbe(args[:3]); err != nil {
			return err
		}
		probe.wait = silence
		if err := probe.ask(); !isSilence(err) {
			return fmt.Errorf("wanted no answer, got: %w", orElse(err, "an answer"))
		}
		// An answer that is slow is no drop.
		return s.world.counted(x, before, 1)
	})
	if err != nil {
		return "", err
	}
	s.count("denials", 1)
	if err := s.expectTuple(&x, probe); err != nil {
		return "", err
	}
	return "", s.seen(mark, before, 1, x)
}

// seen wants the event, and the counter to have moved by at least n.
func (s *script) seen(mark int, before, n uint64, x expectedDrop) error {
	if err := s.world.events.await(mark, x); err != nil {
		return err
	}
	if err := s.world.counted(x, before, n); err != nil {
		return err
	}
	s.count("drop events", 1)
	return nil
}

// counted waits until a node has dropped at least n packets more than before: of
// several the first may be told of while the last are on their way.
func (w *world) counted(x expectedDrop, before, n uint64) error {
	return within(patience, func() error {
		after, err := w.drops(x.node, x.reason)
		if err == nil && after < before+n {
			err = fmt.Errorf("%s counted %d packets as %q, want at least %d more than %d", x.node, after, x.reason, n, before)
		}
		return err
	})
}

// options reads WHAT=VALUE.
func (x *expectedDrop) options(args []string, help string) error {
	for _, a := range args {
		what, v, _ := strings.Cut(a, "=")
		switch what {
		case "reason":
			x.reason = v
		case "node":
			x.node = v
		case "origin":
			x.origin = v
		case "program":
			x.program = v
		case "identity":
			n, err := strconv.ParseUint(v, 10, 32)
			if err != nil {
				return err
			}
			x.sourceIdentity = uint32(n)
		default:
			return usage(help)
		}
	}
	return nil
}

// expectTuple adds what a probe's packets look like: addresses, ports, and the
// workloads and labels of pods.
func (s *script) expectTuple(x *expectedDrop, p probe) error {
	x.source, x.destination, x.protocol = p.from.addr.String(), p.to.addr.String(), p.protocol
	if p.protocol == "icmp" && p.to.addr.Is6() {
		x.protocol = "icmpv6"
	}
	if p.protocol != "icmp" {
		x.sourcePort, x.destinationPort = uint32(p.source), uint32(p.port)
	}
	return s.expectSides(x, p.from, p.to)
}

func (s *script) expectSides(x *expectedDrop, from, to place) error {
	if pod := from.pod; pod != nil {
		x.sourceWorkload, x.sourceLabels = pod.Namespace+"/"+pod.Name, labelsOf(from)
		n, err := s.identityOf(from)
		if err != nil {
			return err
		}
		x.sourceIdentity = n
	}
	if pod := to.pod; pod != nil {
		x.destinationWorkload, x.destinationLabels = pod.Namespace+"/"+pod.Name, labelsOf(to)
	}
	return nil
}

// labelsOf are the labels that a pod's identity must have.
func labelsOf(p place) []string {
	out := []string{"mesh:cluster=" + p.pod.Cluster, "mesh:namespace=" + p.pod.Namespace}
	for k, v := range p.pod.Labels {
		out = append(out, "k8s:"+k+"="+v)
	}
	for k, v := range p.pod.NamespaceLabels {
		out = append(out, "namespace:"+k+"="+v)
	}
	return out
}
