// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func newDial() *cobra.Command {
	var hold, timeout time.Duration
	cmd := &cobra.Command{
		Use: "dial NETWORK ADDRESS:PORT", Short: "Connect, print whom the kernel calls the peer, and how the connection ends",
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			d := net.Dialer{Timeout: timeout}
			d.SetMultipathTCP(false)
			c, err := d.DialContext(cmd.Context(), args[0], args[1])
			if err != nil {
				return fmt.Errorf("connect: %w", err)
			}
			defer c.Close()
			peer, err := peerName(c)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "peer=%s\n", peer)
			if hold == 0 {
				return nil
			}
			if err := c.SetReadDeadline(time.Now().Add(hold)); err != nil {
				return fmt.Errorf("set deadline: %w", err)
			}
			_, err = c.Read(make([]byte, 1))
			fmt.Fprintf(cmd.OutOrStdout(), "end=%s\n", ending(err))
			return nil
		},
	}
	cmd.Flags().DurationVar(&hold, "hold", 0, "wait for the end of the connection")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "of connecting")
	return cmd
}

// peerName is what getpeername answers.
func peerName(c net.Conn) (string, error) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return "", errors.New("no socket")
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return "", fmt.Errorf("peer name: %w", err)
	}
	var sa unix.Sockaddr
	cerr := raw.Control(func(fd uintptr) { sa, err = unix.Getpeername(int(fd)) })
	if err := errors.Join(cerr, err); err != nil {
		return "", fmt.Errorf("peer name: %w", err)
	}
	switch in := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port)).String(), nil
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(in.Addr), uint16(in.Port)).String(), nil
	}
	return "", errors.New("peer name: neither IPv4 nor IPv6")
}

// ending names how a connection ended.
func ending(err error) string {
	var ne net.Error
	switch {
	case errors.Is(err, syscall.ECONNABORTED):
		return "aborted"
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	case errors.Is(err, io.EOF):
		return "closed"
	case errors.As(err, &ne) && ne.Timeout():
		return "open"
	}
	return fmt.Sprint(err)
}
