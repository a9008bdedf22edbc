// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/hawser-mesh/hawser/kvstore"
)

func fromKV(kv *mvccpb.KeyValue) kvstore.KV {
	return kvstore.KV{
		Key: string(kv.Key), Value: kv.Value,
		CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision,
	}
}

func fromEvent(e *clientv3.Event) kvstore.Event {
	ev := kvstore.Event{KV: fromKV(e.Kv), Deleted: e.Type == clientv3.EventTypeDelete}
	if ev.Deleted {
		ev.Value = nil
	}
	return ev
}

func toCmps(in []kvstore.Cmp) []clientv3.Cmp {
	out := make([]clientv3.Cmp, len(in))
	for i, c := range in {
		out[i] = toCmp(c)
		if c.Prefix {
			out[i] = out[i].WithPrefix()
		}
	}
	return out
}

// toCmp relies on etcd comparing an empty range, or an absent key, as one key
// whose revisions are 0.
func toCmp(c kvstore.Cmp) clientv3.Cmp {
	switch c.Target {
	case kvstore.CmpExists:
		return clientv3.Compare(clientv3.CreateRevision(c.Key), ">", 0)
	case kvstore.CmpModRev:
		return clientv3.Compare(clientv3.ModRevision(c.Key), "=", c.Rev)
	case kvstore.CmpCreateRev:
		return clientv3.Compare(clientv3.CreateRevision(c.Key), "=", c.Rev)
	case kvstore.CmpValue:
		return clientv3.Compare(clientv3.Value(c.Key), "=", string(c.Value))
	case kvstore.CmpNotAfter:
		return clientv3.Compare(clientv3.ModRevision(c.Key), "<", c.Rev+1)
	default:
		return clientv3.Compare(clientv3.CreateRevision(c.Key), "=", 0)
	}
}

func toOps(in []kvstore.Op) []clientv3.Op {
	out := make([]clientv3.Op, len(in))
	for i, o := range in {
		var opts []clientv3.OpOption
		if o.Prefix {
			opts = append(opts, clientv3.WithPrefix())
		}
		switch o.Kind {
		case kvstore.OpDelete:
			out[i] = clientv3.OpDelete(o.Key, opts...)
		case kvstore.OpGet:
			out[i] = clientv3.OpGet(o.Key, opts...)
		default:
			out[i] = clientv3.OpPut(o.Key, string(o.Value), clientv3.WithLease(clientv3.LeaseID(o.Lease)))
		}
	}
	return out
}
