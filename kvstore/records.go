// SPDX-License-Identifier: Apache-2.0

package kvstore

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity"
)

// MaxRecord is the largest value accepted, in bytes.
const MaxRecord = 1 << 20

// ErrUnknownKind says that this version has no record type for a key. Readers
// skip such keys without counting them as bad; mirrors keep them.
var ErrUnknownKind = errors.New("no record type is known for this kind")

// Reasons of a BadRecord, the words that counters carry.
const (
	ReasonKey      = "key"
	ReasonDecode   = "decode"
	ReasonMismatch = "mismatch"
	ReasonRange    = "range"
	ReasonLabels   = "labels"
	ReasonAddress  = "address"
	ReasonSize     = "size"
)

// Reasons are those for which a record is malformed; counters begin with all of
// them at 0.
func Reasons() []string {
	return []string{ReasonKey, ReasonDecode, ReasonMismatch, ReasonRange, ReasonLabels, ReasonAddress, ReasonSize}
}

// Limits is what a reader knows beyond the record itself. The zero value checks
// no number ranges.
type Limits struct {
	// Space divides identity numbers among clusters; its zero value means
	// that it is not known yet.
	Space identity.Space
	// ClusterID is the id of a cluster; 0 means unknown. It may be nil.
	ClusterID func(cluster string) uint32
}

// NewRecord is an empty record of the type that is stored under a key. ok is
// false for kinds without one. Kinds whose value is plain text (incarnation,
// elections, podcidrs) are StringValues, references are Empty.
func NewRecord(k Key) (m proto.Message, ok bool) {
	switch k.Kind {
	case KindCluster:
		return &keyspacev1.Cluster{}, true
	case KindNode:
		return &keyspacev1.Node{}, true
	case KindIdentity:
		return &keyspacev1.Identity{}, true
	case KindIdentityLabels, KindRetired:
		return &keyspacev1.IdentityRef{}, true
	case KindIP:
		return &keyspacev1.IPEntry{}, true
	case KindVTEP:
		return &keyspacev1.VTEP{}, true
	case KindService:
		return &keyspacev1.Service{}, true
	case KindServiceID:
		return &keyspacev1.ServiceID{}, true
	case KindSlice:
		return &keyspacev1.BackendSlice{}, true
	case KindHealth:
		return &keyspacev1.NodeHealth{}, true
	}
	return newInternalRecord(k)
}

// newInternalRecord is NewRecord for what never leaves the cluster.
func newInternalRecord(k Key) (m proto.Message, ok bool) {
	switch k.Kind {
	case KindPolicy:
		return &keyspacev1.PolicyObject{}, true
	case KindPresence:
		return &keyspacev1.Presence{}, true
	case KindStatus:
		return &keyspacev1.NodeStatus{}, true
	case KindNodeConfig:
		return &keyspacev1.NodeConfig{}, true
	case KindTrust:
		return &keyspacev1.TrustBundle{}, true
	case KindPeerView:
		if k.Subtree == Private {
			return &keyspacev1.Peer{}, true
		}
		return &keyspacev1.PeerView{}, true
	case KindSynced:
		return &keyspacev1.Synced{}, true
	case KindProgress:
		return &keyspacev1.Position{}, true
	case KindToken:
		return &keyspacev1.Token{}, true
	case KindVIP:
		return &keyspacev1.VIPOwner{}, true
	case KindEnrolment:
		return &keyspacev1.Enrolment{}, true
	case KindGossip:
		return &keyspacev1.Gossip{}, true
	case KindGossipKeys:
		return &keyspacev1.GossipKeys{}, true
	case KindCARotation:
		return &keyspacev1.CARotation{}, true
	case KindRef:
		return &emptypb.Empty{}, true
	case KindIncarnation, KindElection, KindPodCIDR:
		return &wrapperspb.StringValue{}, true
	}
	return nil, false
}

// Decode reads and validates a value without knowing number ranges; see
// Limits.Decode.
func Decode(k Key, value []byte) (proto.Message, error) { return Limits{}.Decode(k, value) }

// Decode reads the value of a key and checks all that keyspace.md demands of it.
// The error is a *BadRecord, or ErrUnknownKind. Fields that this version does
// not know are kept in the message.
func (l Limits) Decode(k Key, value []byte) (proto.Message, error) {
	if len(value) > MaxRecord {
		return nil, bad(k, ReasonSize, "%d bytes, at most %d are allowed", len(value), MaxRecord)
	}
	m, ok := NewRecord(k)
	if !ok {
		return nil, fmt.Errorf("record %s: %w", k, ErrUnknownKind)
	}
	if err := unmarshal(m, value); err != nil {
		return nil, bad(k, ReasonDecode, "not a %s: %v", m.ProtoReflect().Descriptor().Name(), err)
	}
	if err := l.Check(k, m); err != nil {
		return nil, err
	}
	return m, nil
}

// Unmarshal reads a value without believing it, for showing it to people. ok is
// false for kinds without a record type and for values that are not of it.
func Unmarshal(k Key, value []byte) (m proto.Message, ok bool) {
	m, ok = NewRecord(k)
	if !ok || unmarshal(m, value) != nil {
		return nil, false
	}
	return m, true
}

func unmarshal(m proto.Message, value []byte) error {
	switch t := m.(type) {
	case *emptypb.Empty: // the key says all
		return nil
	case *wrapperspb.StringValue:
		t.Value = string(value)
		return nil
	}
	return proto.Unmarshal(value, m)
}

// Encode validates a record and renders the value of its key; equal records
// give equal bytes. The error is a *BadRecord, or ErrUnknownKind.
func Encode(k Key, m proto.Message) ([]byte, error) {
	want, ok := NewRecord(k)
	if !ok {
		return nil, fmt.Errorf("record %s: %w", k, ErrUnknownKind)
	}
	if m == nil || m.ProtoReflect().Descriptor() != want.ProtoReflect().Descriptor() {
		return nil, bad(k, ReasonMismatch, "a %T is not what this key holds", m)
	}
	if err := (Limits{}).Check(k, m); err != nil {
		return nil, err
	}
	switch t := m.(type) {
	case *emptypb.Empty:
		return nil, nil
	case *wrapperspb.StringValue:
		return []byte(t.GetValue()), nil
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, bad(k, ReasonDecode, "%v", err)
	}
	if len(b) > MaxRecord {
		return nil, bad(k, ReasonSize, "%d bytes, at most %d are allowed", len(b), MaxRecord)
	}
	return b, nil
}

// SameRecord reports whether two values of one key mean the same: they are
// equal but for updated_at. Values that cannot be read are the same if their
// bytes are.
func SameRecord(k Key, a, b []byte) bool {
	if string(a) == string(b) {
		return true
	}
	ma, okA := Unmarshal(k, a)
	mb, okB := Unmarshal(k, b)
	if !okA || !okB {
		return false
	}
	for _, m := range []proto.Message{ma, mb} {
		if f := m.ProtoReflect().Descriptor().Fields().ByName("updated_at"); f != nil {
			m.ProtoReflect().Clear(f)
		}
	}
	return proto.Equal(ma, mb)
}

func bad(k Key, reason, format string, args ...any) error {
	return &BadRecord{Key: k.String(), Reason: reason, Detail: fmt.Sprintf(format, args...)}
}
