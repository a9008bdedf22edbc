// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/observe/stages"
)

// updatedAt is the field that every record has.
const updatedAt = 15

// arrival is a batch that was received.
type arrival struct {
	oldest int64     // oldest_at of the batch
	at     time.Time // monotonic
}

// seen observes stages.Etcd for one of the changes that a watch told at now.
func (p *peerState) seen(w kvstore.WatchBatch, now time.Time) {
	n := len(w.Events)
	if n == 0 || w.Events[n-1].Deleted {
		return
	}
	written := writtenAt(w.Events[n-1].Value)
	if took := now.Sub(time.Unix(0, written)); written > 0 && took < stages.TooOld {
		p.observe(stages.Etcd, max(0, took))
	}
}

// left observes stages.Queue for a batch whose oldest change waited since then.
func (p *peerState) left(since time.Time) {
	if !since.IsZero() {
		p.observe(stages.Queue, time.Since(since))
	}
}

// writtenAt is updated_at of an encoded record, Unix ns; 0 if it has none. It
// does not decode the rest.
func writtenAt(record []byte) int64 {
	var at int64
	for len(record) > 0 {
		num, typ, n := protowire.ConsumeTag(record)
		if n < 0 {
			return 0
		}
		record = record[n:]
		if num == updatedAt && typ == protowire.VarintType {
			v, n := protowire.ConsumeVarint(record)
			if n < 0 {
				return 0
			}
			at, record = int64(v), record[n:]
			continue
		}
		if n = protowire.ConsumeFieldValue(num, typ, record); n < 0 {
			return 0
		}
		record = record[n:]
	}
	return at
}
