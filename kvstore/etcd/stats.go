// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/hawser-mesh/hawser/kvstore"
)

// Stats are an etcd's size and age.
type Stats struct {
	Keys          int64 // below kvstore.Root
	DatabaseBytes int64 // allocated on disk
	Revision      int64
}

// Stats asks the store; it needs the rights of Server.Root.
func (s *Server) Stats(ctx context.Context) (Stats, error) {
	ctx, cancel := context.WithTimeout(ctx, s.root.timeout)
	defer cancel()
	count, err := s.root.etcd.Get(ctx, kvstore.Root, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return Stats{}, s.root.wrap("count", kvstore.Root, err)
	}
	return Stats{
		Keys:          count.Count,
		DatabaseBytes: s.etcd.Server.Backend().Size(),
		Revision:      count.Header.Revision,
	}, nil
}

// QuotaBytes is the size of the database at which no more is written.
func (s *Server) QuotaBytes() int64 { return quotaBytes }
