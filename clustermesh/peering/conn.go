// SPDX-License-Identifier: Apache-2.0

package peering

import (
	"context"
	"crypto/tls"
	"errors"
	"net"

	"google.golang.org/grpc/credentials"
)

// Handshaken is a gRPC transport security for connections whose TLS handshake
// was done before gRPC sees them: the connection's state is needed first, to
// choose the service or to make a proof. It accepts *tls.Conn and connections
// that carry one (TLSCarrier), on both sides.
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
