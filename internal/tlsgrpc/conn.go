// SPDX-License-Identifier: Apache-2.0

// Package tlsgrpc runs gRPC over TLS connections whose handshake was done before
// gRPC sees them: the connection's state is needed first, to choose the service
// or to make a proof. Start with Dial and ClientOver; servers use Handshaken.
package tlsgrpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

const dialTimeout = 5 * time.Second

// Handshaken is a gRPC transport security for connections with a finished TLS
// handshake. It accepts *tls.Conn and connections that carry one (TLSCarrier),
// on both sides.
type Handshaken struct{}

// TLSCarrier is a wrapped TLS connection.
type TLSCarrier interface{ ConnectionState() tls.ConnectionState }

// ConnInfo is what a gRPC call knows about its connection.
type ConnInfo struct {
	credentials.CommonAuthInfo
	State tls.ConnectionState
	// Conn is the connection itself; closing it ends all calls on it.
	Conn net.Conn
}

// AuthType names the kind of transport security.
func (ConnInfo) AuthType() string { return "tls" }

func (Handshaken) shake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	t, ok := c.(TLSCarrier)
	if !ok || !t.ConnectionState().HandshakeComplete {
		return nil, nil, errors.New("connection without a finished TLS handshake")
	}
	return c, ConnInfo{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		State:          t.ConnectionState(), Conn: c,
	}, nil
}

// ServerHandshake implements credentials.TransportCredentials.
func (h Handshaken) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return h.shake(c)
}

// ClientHandshake implements credentials.TransportCredentials.
func (h Handshaken) ClientHandshake(_ context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return h.shake(c)
}

// Info implements credentials.TransportCredentials.
func (Handshaken) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials.
func (h Handshaken) Clone() credentials.TransportCredentials { return h }

// OverrideServerName implements credentials.TransportCredentials.
func (Handshaken) OverrideServerName(string) error { return nil }

// Dial connects and finishes the handshake, within 5 s.
func Dial(ctx context.Context, endpoint string, cfg *tls.Config) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c, err := (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", endpoint)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", endpoint, err)
	}
	t := c.(*tls.Conn)
	if t.ConnectionState().NegotiatedProtocol != "h2" {
		t.Close()
		return nil, fmt.Errorf("dial %s: it does not speak HTTP/2", endpoint)
	}
	return t, nil
}

// ClientOver is a gRPC client on exactly this connection; it never dials again.
func ClientOver(c net.Conn, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	once := make(chan net.Conn, 1)
	once <- c
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		select {
		case c := <-once:
			return c, nil
		default:
			return nil, errors.New("the connection is gone")
		}
	}
	opts = append([]grpc.DialOption{grpc.WithContextDialer(dial), grpc.WithTransportCredentials(Handshaken{}), grpc.WithDisableServiceConfig()}, opts...)
	return grpc.NewClient("passthrough:///hawser", opts...)
}
