// SPDX-License-Identifier: Apache-2.0

package etcd

import clientv3 "go.etcd.io/etcd/client/v3"

// WatchThrough has watches served by what around returns; nobody uses the client
// yet.
func (c *Client) WatchThrough(around func(clientv3.Watcher) clientv3.Watcher) {
	c.etcd.Watcher = around(c.etcd.Watcher)
}
