// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/hawser-mesh/hawser/datapath"
	"github.com/hawser-mesh/hawser/identity"
)

// DecodeEvent decodes a record of the events ring.
func DecodeEvent(raw []byte) (datapath.Event, error) {
	var e Event
	if err := binary.Read(bytes.NewReader(raw), binary.NativeEndian, &e); err != nil {
		return datapath.Event{}, fmt.Errorf("decode event of %d bytes: %w", len(raw), err)
	}
	return datapath.Event{
		Type:        datapath.EventType(e.Type),
		Reason:      datapath.DropReason(e.Reason),
		Program:     ProgramName(e.Program),
		Direction:   datapath.Direction(e.Direction),
		Protocol:    e.Protocol,
		Source:      netip.AddrPortFrom(e.Source.Netip(), e.SourcePort.Uint16()),
		Destination: netip.AddrPortFrom(e.Destination.Netip(), e.DestPort.Uint16()),
		SourceID:    identity.Number(e.SourceID),
		DestID:      identity.Number(e.DestID),
		Endpoint:    e.Endpoint,
		RuleSet:     e.RuleSet,
		Origin:      e.Origin,
		Length:      e.Length,
		TCPFlags:    e.TCPFlags,
		ICMPType:    e.ICMPType,
		ICMPCode:    e.ICMPCode,
		Outer:       e.Outer.Netip(),
		Suppressed:  e.Suppressed,
		Line:        e.Line,
	}, nil
}

// ReadEvents calls handle for each event until the context ends, and returns
// nil then. Only one reader may read the ring; handle must not block for long,
// or events are lost.
func ReadEvents(ctx context.Context, ring *ebpf.Map, handle func(datapath.Event)) error {
	r, err := ringbuf.NewReader(ring)
	if err != nil {
		return fmt.Errorf("open event ring: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = r.Close() })
	defer stop()
	defer r.Close()
	var rec ringbuf.Record
	for {
		if err := r.ReadInto(&rec); errors.Is(err, ringbuf.ErrClosed) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read event: %w", err)
		}
		e, err := DecodeEvent(rec.RawSample)
		if err != nil {
			return err
		}
		handle(e)
	}
}
