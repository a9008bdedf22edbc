// SPDX-License-Identifier: Apache-2.0

package inspect

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/hawser-mesh/hawser/kvstore"
)

// exportFormat is the version of the export's lines.
const exportFormat = 1

// Header is the first line of an export.
type Header struct {
	Format   int    `json:"hawserExport"`
	Cluster  string `json:"cluster"`
	Revision int64  `json:"revision"`
	Time     int64  `json:"time"` // Unix ns
}

// Line is one key of an export. Value is what is stored; Record shows it. A line
// written by hand may have a Record alone.
type Line struct {
	Key    string          `json:"key"`
	Record json.RawMessage `json:"record,omitempty"`
	Value  []byte          `json:"value,omitempty"`
}

// Prefixes are the directories that an administrator of a cluster may read,
// each with all that an export holds of it.
func Prefixes(own string) []string {
	return []string{
		kvstore.SubtreePrefix(kvstore.State), kvstore.Prefix(kvstore.Local, own), kvstore.Prefix(kvstore.Private, own),
	}
}

// Export writes all keys below the prefixes as JSON lines, after a Header, all
// at one revision. It returns the number of keys. Leased keys and what names
// this history of the store are left out: they mean nothing in another.
func Export(ctx context.Context, c kvstore.Client, w io.Writer, own string, prefixes []string, now time.Time) (int, error) {
	_, rev, err := c.Get(ctx, kvstore.SubtreePrefix(kvstore.State))
	if err != nil {
		return 0, fmt.Errorf("export: %w", err)
	}
	out := bufio.NewWriter(w)
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(Header{Format: exportFormat, Cluster: own, Revision: rev, Time: now.UnixNano()}); err != nil {
		return 0, fmt.Errorf("export: %w", err)
	}
	n := 0
	for _, p := range prefixes {
		_, err := WalkAt(ctx, c, p, rev, func(kv kvstore.KV) error {
			if k, err := kvstore.ParseKey(kv.Key); err == nil && ofThisHistory(k.Kind, k.Subtree) {
				return nil
			}
			n++
			return enc.Encode(Line{Key: kv.Key, Record: Decode(kv, kvstore.Limits{}).Record, Value: kv.Value})
		})
		if err != nil {
			return n, fmt.Errorf("export %s: %w", p, err)
		}
	}
	return n, out.Flush()
}

// ofThisHistory lists the kinds that are leased, or name a position in this
// store's or a peer's history. (No kind of state/ is any of it.)
func ofThisHistory(k kvstore.Kind, s kvstore.Subtree) bool {
	switch k {
	case kvstore.KindPresence, kvstore.KindElection, kvstore.KindSynced, kvstore.KindIncarnation, kvstore.KindProgress:
		return s != kvstore.State
	}
	return false
}

// maxLine is the longest line of an export: a record of the largest size, in
// base64 and as JSON.
const maxLine = 8 * kvstore.MaxRecord

// Parse reads an export and checks every line; the error joins the problems (the
// first twenty), each with its line. The keys must be own's: state/, local/<own>/
// and private/<own>/.
func Parse(r io.Reader, own string) (Header, []kvstore.KV, error) {
	in := bufio.NewScanner(r)
	in.Buffer(nil, maxLine)
	var h Header
	var kvs []kvstore.KV
	var errs []error
	seen := map[string]int{}
	const maxProblems = 20
	for n := 1; in.Scan() && len(errs) < maxProblems; n++ {
		text := bytes.TrimSpace(in.Bytes())
		switch {
		case len(text) == 0:
			continue
		case n == 1:
			if err := json.Unmarshal(text, &h); err != nil || h.Format != exportFormat {
				return h, nil, fmt.Errorf("not an export of hawser kvstore: the first line must say \"hawserExport\": %d", exportFormat)
			}
			continue
		}
		kv, err := parseLine(text, own)
		if first := seen[kv.Key]; err == nil && first != 0 {
			err = fmt.Errorf("key %s stands in line %d, too", kv.Key, first)
		}
		seen[kv.Key] = n
		if err != nil {
			errs = append(errs, fmt.Errorf("line %d: %w", n, err))
			continue
		}
		kvs = append(kvs, kv)
	}
	if err := in.Err(); err != nil {
		errs = append(errs, fmt.Errorf("read export: %w", err))
	}
	if h.Format == 0 && len(errs) == 0 {
		errs = append(errs, errors.New("the export is empty"))
	}
	return h, kvs, errors.Join(errs...)
}

func parseLine(text []byte, own string) (kvstore.KV, error) {
	var l Line
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&l); err != nil {
		return kvstore.KV{}, fmt.Errorf("not a key: %w", err)
	}
	k, err := kvstore.ParseKey(l.Key)
	if err != nil {
		return kvstore.KV{}, err
	}
	if k.Subtree != kvstore.State && k.Cluster != own {
		return kvstore.KV{}, fmt.Errorf("%s is not of cluster %s", l.Key, own)
	}
	value, err := lineValue(k, l)
	return kvstore.KV{Key: l.Key, Value: value}, err
}

// lineValue is the stored form of a line. A line with both forms must say the
// same in both, so that an edit of one of them is not lost.
func lineValue(k kvstore.Key, l Line) ([]byte, error) {
	if len(l.Record) == 0 {
		_, err := kvstore.Decode(k, l.Value)
		return l.Value, ignoreUnknown(err)
	}
	if !k.Kind.Known() {
		return l.Value, nil
	}
	if l.Value == nil {
		return EncodeJSON(k, l.Record)
	}
	shown := Decode(kvstore.KV{Key: l.Key, Value: l.Value}, kvstore.Limits{})
	if shown.Problem != "" {
		return nil, &kvstore.BadRecord{Key: l.Key, Reason: kvstore.ReasonDecode, Detail: shown.Problem}
	}
	var given bytes.Buffer
	if err := json.Compact(&given, l.Record); err != nil {
		return nil, fmt.Errorf("record of %s: %w", l.Key, err)
	}
	if !bytes.Equal(given.Bytes(), shown.Record) {
		return nil, fmt.Errorf("record and value of %s differ: remove \"value\" to import the record", l.Key)
	}
	return l.Value, nil
}

func ignoreUnknown(err error) error {
	if errors.Is(err, kvstore.ErrUnknownKind) {
		return nil
	}
	return err
}

// EncodeJSON is the stored form of a record as Decode shows it, validated.
// Unknown fields are refused.
func EncodeJSON(k kvstore.Key, record []byte) ([]byte, error) {
	m, ok := kvstore.NewRecord(k)
	if !ok {
		return nil, fmt.Errorf("record %s: %w", k, kvstore.ErrUnknownKind)
	}
	switch t := m.(type) {
	case *emptypb.Empty:
		return []byte{}, nil
	case *wrapperspb.StringValue:
		if err := json.Unmarshal(record, &t.Value); err != nil {
			return nil, fmt.Errorf("record %s: a JSON string is wanted: %w", k, err)
		}
	default:
		if err := protojson.Unmarshal(record, m); err != nil {
			return nil, fmt.Errorf("record %s: %w", k, err)
		}
	}
	return kvstore.Encode(k, m)
}
