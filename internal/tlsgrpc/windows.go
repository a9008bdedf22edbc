// SPDX-License-Identifier: Apache-2.0

package tlsgrpc

import "google.golang.org/grpc"

// Left alone, gRPC looks for the best size of its flow control windows by a ping
// and a window update beside almost every message: four more packets, each of
// which wakes a process, for a call of two. Windows that stay as they are cost
// nothing, and bound what a far side can make this one hold.

// ClientWindows makes a client take up to so many bytes that are not read yet, a
// stream and a connection.
func ClientWindows(bytes int32) []grpc.DialOption {
	return []grpc.DialOption{grpc.WithStaticStreamWindowSize(bytes), grpc.WithStaticConnWindowSize(bytes)}
}

// ServerWindows is ClientWindows for a server.
func ServerWindows(bytes int32) []grpc.ServerOption {
	return []grpc.ServerOption{grpc.StaticStreamWindowSize(bytes), grpc.StaticConnWindowSize(bytes)}
}
