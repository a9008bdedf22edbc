// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
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

// toTxn makes the request that etcd's client would, without the copies that its
// own builders make of each part.
func toTxn(cmps []kvstore.Cmp, thens, elses []kvstore.Op) *pb.TxnRequest {
	r := &pb.TxnRequest{Compare: make([]*pb.Compare, len(cmps)), Success: toOps(thens), Failure: toOps(elses)}
	for i, c := range cmps {
		r.Compare[i] = toCmp(c)
	}
	return r
}

// toCmp relies on etcd comparing an empty range, or an absent key, as one key
// whose revisions are 0.
func toCmp(c kvstore.Cmp) *pb.Compare {
	out := &pb.Compare{Key: []byte(c.Key), RangeEnd: rangeEnd(c.Key, c.Prefix)}
	switch c.Target {
	case kvstore.CmpModRev:
		out.Target, out.TargetUnion = pb.Compare_MOD, &pb.Compare_ModRevision{ModRevision: c.Rev}
	case kvstore.CmpValue:
		out.Target, out.TargetUnion = pb.Compare_VALUE, &pb.Compare_Value{Value: c.Value}
	case kvstore.CmpNotAfter:
		out.Result = pb.Compare_LESS
		out.Target, out.TargetUnion = pb.Compare_MOD, &pb.Compare_ModRevision{ModRevision: c.Rev + 1}
	case kvstore.CmpCreateRev:
		out.Target, out.TargetUnion = pb.Compare_CREATE, &pb.Compare_CreateRevision{CreateRevision: c.Rev}
	case kvstore.CmpExists:
		out.Result = pb.Compare_GREATER
		fallthrough
	default:
		out.Target, out.TargetUnion = pb.Compare_CREATE, &pb.Compare_CreateRevision{}
	}
	return out
}

func toOps(in []kvstore.Op) []*pb.RequestOp {
	out := make([]*pb.RequestOp, len(in))
	for i, o := range in {
		key, end := []byte(o.Key), rangeEnd(o.Key, o.Prefix)
		switch o.Kind {
		case kvstore.OpDelete:
			out[i] = &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key, RangeEnd: end}}}
		case kvstore.OpGet:
			out[i] = &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key, RangeEnd: end}}}
		default:
			out[i] = &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: o.Value, Lease: int64(o.Lease)}}}
		}
	}
	return out
}

func rangeEnd(key string, prefix bool) []byte {
	if !prefix {
		return nil
	}
	return []byte(clientv3.GetPrefixRangeEnd(key))
}
