// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// A train is so many datagrams of so many bytes, given to the kernel in one piece
// as senders of QUIC do (UDP_SEGMENT, udp(7)).
const (
	trainCars = 20
	trainCar  = 1000
)

// cmdTrain is `train FROM TO udp/PORT`: every datagram of a train is answered.
func cmdTrain(s *script, args []string) (string, error) {
	if len(args) != 3 {
		return "", usage("train FROM TO udp/PORT")
	}
	p, err := s.newProbe(args)
	if err != nil {
		return "", err
	}
	if p.protocol != "udp" {
		return "", usage("train FROM TO udp/PORT")
	}
	s.count("probes", 1)
	return "", nsthread.InNetns(p.from.netns, p.askTrain)
}

func (p probe) askTrain() error {
	c, err := p.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		return err
	}
	var segment error
	err = raw.Control(func(fd uintptr) {
		segment = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, trainCar)
	})
	if err := errors.Join(err, segment); err != nil {
		return err
	}
	if _, err := c.Write(make([]byte, trainCars*trainCar)); err != nil {
		return err
	}
	in := make([]byte, 2*trainCar)
	for n := range trainCars {
		size, err := c.Read(in)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return no("%d of %d datagrams were answered", n, trainCars)
		}
		if err != nil {
			return err
		}
		if size != trainCar {
			return no("an answer of %d bytes, want %d", size, trainCar)
		}
	}
	return nil
}
