// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"errors"
	"fmt"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	"github.com/hawser-mesh/hawser/clustermesh/peering"
	"github.com/hawser-mesh/hawser/kvstore"
)

// Reasons of a violation, counted beside those of refused records.
const (
	reasonHello    = "hello"    // another protocol, or a version too far off
	reasonCorrupt  = "corrupt"  // a batch that cannot be unpacked
	reasonSequence = "sequence" // batches out of order, or acknowledgements of none
	reasonPosition = "position" // a low-water mark that goes back
	reasonProtocol = "protocol" // frames where they do not belong
	reasonEndpoint = "endpoint" // addresses that cannot be dialled
)

// Reasons are all those for which something of a peer is refused; counters begin
// with all of them at 0.
func Reasons() []string {
	return append(peering.Reasons(), reasonHello, reasonCorrupt, reasonSequence, reasonPosition, reasonProtocol, reasonEndpoint)
}

// violation is what a peer did that its protocol forbids. It ends the stream:
// what followed could not be relied on. The next one resumes where the last good
// batch ended.
type violation struct{ reason, detail string }

func (v *violation) Error() string { return v.detail }

func violate(reason, format string, args ...any) error {
	return &violation{reason, fmt.Sprintf(format, args...)}
}

// refuseStream counts what ended a stream if that was the peer's doing.
func (p *peerState) refuseStream(peer string, err error) {
	var v *violation
	if errors.As(err, &v) {
		p.refuse(&kvstore.BadRecord{Key: "stream of " + peer, Reason: v.reason, Detail: v.detail})
	}
}

// outlives reports whether what a key said stays when it now holds what cannot be
// read: damage says nothing, so the last that was said holds. It has to be within
// the grant, by which what was copied under another one was not judged yet. Who
// says what he may not say is withdrawn with all that the key said before.
func (im *importer) outlives(c judged, old entry) bool {
	if c.err.Reason != kvstore.ReasonDecode && c.err.Reason != kvstore.ReasonSize {
		return false
	}
	_, judgedNow := im.mirror.seen[c.rel]
	return (im.sameGrant || judgedNow) && im.mirror.fits(judged{rel: c.rel, kind: old.kind, weight: old.weight}, im.guard.Limit(old.kind))
}

// follows checks that a batch is the one that must come now.
func (im *importer) follows(b *federationv1.Batch, changes int) error {
	switch {
	case im.incarnation == "" || b.GetSnapshot() != (im.snapshot != nil):
		return violate(reasonProtocol, "batch %d is outside of its resync", b.GetSequence())
	case b.GetSequence() != im.sequence+1:
		return violate(reasonSequence, "batch %d came after batch %d", b.GetSequence(), im.sequence)
	case b.GetSnapshotEnd() && !b.GetSnapshot():
		return violate(reasonProtocol, "batch %d ends a snapshot that there is not", b.GetSequence())
	case im.snapshot != nil && b.GetRevision() != im.snapshot.GetRevision():
		return violate(reasonPosition, "batch %d is of revision %d, its snapshot of %d", b.GetSequence(), b.GetRevision(), im.snapshot.GetRevision())
	case im.snapshot == nil && b.GetRevision() < im.position.GetRevision():
		return violate(reasonPosition, "the low-water mark went back from %d to %d in batch %d", im.position.GetRevision(), b.GetRevision(), b.GetSequence())
	case changes != int(b.GetCount()):
		return violate(reasonProtocol, "batch %d holds %d changes and says %d", b.GetSequence(), changes, b.GetCount())
	}
	im.sequence = b.GetSequence()
	return nil
}
