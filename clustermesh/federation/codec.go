// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"fmt"
	"strings"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	maxBatchChanges = 16_384
	maxBatchBytes   = 16 << 20 // after decompression
	maxFrameBytes   = 8 << 20
	maxKeyBytes     = 1024
)

// codec packs and unpacks batches; it is for one goroutine in each direction.
type codec struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

func newCodec() (*codec, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1),
		zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true))
	if err != nil {
		return nil, fmt.Errorf("make compressor: %w", err)
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxBatchBytes))
	if err != nil {
		return nil, fmt.Errorf("make decompressor: %w", err)
	}
	return &codec{enc: enc, dec: dec}, nil
}

func (c *codec) close() {
	c.enc.Close()
	c.dec.Close()
}

func (c *codec) pack(changes []*federationv1.Change) ([]byte, error) {
	if len(changes) == 0 {
		return nil, nil
	}
	raw, err := proto.Marshal(&federationv1.Changes{Changes: changes})
	if err != nil {
		return nil, fmt.Errorf("encode changes: %w", err)
	}
	return c.enc.EncodeAll(raw, nil), nil
}

// unpack bounds what a peer can make us allocate.
func (c *codec) unpack(packed []byte) ([]*federationv1.Change, error) {
	if len(packed) == 0 {
		return nil, nil
	}
	raw, err := c.dec.DecodeAll(packed, nil)
	if err != nil {
		return nil, violate(reasonCorrupt, "its changes cannot be decompressed into at most %d bytes: %v", maxBatchBytes, err)
	}
	var cs federationv1.Changes
	if err := proto.Unmarshal(raw, &cs); err != nil {
		return nil, violate(reasonCorrupt, "its changes cannot be decoded: %v", err)
	}
	if len(cs.GetChanges()) > maxBatchChanges {
		return nil, violate(kvstore.ReasonSize, "it has %d changes; at most %d are allowed", len(cs.GetChanges()), maxBatchChanges)
	}
	return cs.GetChanges(), nil
}

// judged is a change that was checked; err says why it is refused.
type judged struct {
	rel, full string
	kind      kvstore.Kind
	value     []byte
	hash      valueHash
	weight    uint64 // what it counts against its kind's limit
	deleted   bool
	err       *kvstore.BadRecord
	surplus   *kvstore.BadRecord // what of it is not taken; value is the rest
	whole     []byte             // with it; nil: value is all
}

// said is the record as the peer sent it.
func (j *judged) said() []byte {
	if j.whole != nil {
		return j.whole
	}
	return j.value
}

// judge checks one change against the keyspace's rules and the peer's grant.
func judge(peer string, guard *peering.Guard, c *federationv1.Change) judged {
	j := judged{rel: c.GetKey(), full: kvstore.Prefix(kvstore.State, peer) + c.GetKey(), value: c.GetValue(), deleted: c.GetDeleted(), weight: 1}
	refuse := func(reason, detail string) judged {
		j.err = &kvstore.BadRecord{Key: shorten(j.full), Reason: reason, Detail: detail}
		return j
	}
	if strings.HasPrefix(j.rel, kvstore.Root) || strings.HasPrefix(j.rel, "/") || strings.Contains(j.rel, "..") {
		return refuse(peering.ReasonForeign, "not a key below state/"+peer+"/")
	}
	if len(j.full) > maxKeyBytes {
		return refuse(kvstore.ReasonSize, fmt.Sprintf("the key has %d bytes", len(j.full)))
	}
	k, err := kvstore.ParseKey(j.full)
	if err != nil {
		return refuse(kvstore.ReasonKey, err.Error())
	}
	j.kind = k.Kind
	if j.deleted {
		return j
	}
	if len(j.value) > kvstore.MaxRecord {
		return refuse(kvstore.ReasonSize, fmt.Sprintf("the value has %d bytes", len(j.value)))
	}
	if err := judgeValue(k, guard, &j); err != nil {
		j.err = err
	}
	j.hash = hashOf(j.value)
	return j
}
