// SPDX-License-Identifier: Apache-2.0

// Package etcdctl proves that the keyspace reads well with etcd's own client: it
// builds etcdctl and runs it against an etcd that holds a record of each kind.
// It is a module of its own so that etcdctl's requirements are not Hawser's.
package etcdctl
