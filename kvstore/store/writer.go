// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/hawser-mesh/hawser/internal/backoff"
	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	defaultResync = 5 * time.Minute
	// repairGap is how long a key is left alone at first that somebody else changed
	// and, at once, again.
	repairGap = time.Second
)

// WriterConfig is what a Writer keeps.
type WriterConfig struct {
	Client kvstore.Client
	// Prefixes are the directories it writes below, each ending with '/' or
	// being a whole key; it reads them all when it connects.
	Prefixes []string
	// Owned says which stored keys are this Writer's: those that it repairs
	// and, after Prune, removes. nil means all below Prefixes. It must be
	// pure.
	Owned func(k kvstore.Key, value []byte) bool
	// Resync is how often the store is compared with what is wanted while
	// nothing seems to be wrong; 0 means 5 minutes.
	Resync time.Duration
	// Now stamps records, and tells how long ago a key was put back; nil means
	// time.Now.
	Now func() time.Time
	Log *slog.Logger
}

// Writer keeps its owner's keys as they were last set, through lost connections
// and stores that were wiped. Of several values set for one key only the newest
// is written; the backlog is at most one entry for each key. What others do to its
// keys it learns by Observe; without, when it compares all again.
type Writer struct {
	cfg WriterConfig

	mu      sync.Mutex
	desired map[string]desired
	stored  map[string]have // own keys as the store had them last
	during  map[string]have // what Observe heard of them while they are listed
	dirty   map[string]span
	repairs map[string]repair
	refused map[string]error // keys that the store does not take
	seq     uint64
	pruning bool
	lastErr error
	changed chan struct{} // closed when something was committed or refused
	wake    chan struct{} // capacity 1: there is something to do
}

type desired struct {
	key   kvstore.Key
	value []byte
	gone  bool // shall not exist
}

// span is which calls of Set and Remove a key still has to satisfy.
type span struct{ first, last uint64 }

// WriterStatus is how a Writer stands.
type WriterStatus struct {
	Keys    int // wanted
	Pending int // not committed yet
	Refused map[string]error
	Err     error // of the last try; nil after a success
}

// NewWriter returns a Writer; Run makes it write.
func NewWriter(cfg WriterConfig) (*Writer, error) {
	if cfg.Client == nil || len(cfg.Prefixes) == 0 {
		return nil, errors.New("writer: client and prefixes are needed")
	}
	if cfg.Resync == 0 {
		cfg.Resync = defaultResync
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Writer{
		cfg: cfg, desired: map[string]desired{}, stored: map[string]have{}, repairs: map[string]repair{}, dirty: map[string]span{},
		refused: map[string]error{}, changed: make(chan struct{}), wake: make(chan struct{}, 1),
	}, nil
}

// Set wants the record under the key. It validates and returns at once; the
// record is copied. A record without updated_at is stamped. The error is about
// the record, or a key outside of the Writer's prefixes.
func (w *Writer) Set(k kvstore.Key, m proto.Message) error {
	if !w.mine(k.String()) {
		return fmt.Errorf("set %s: not below %s", k, strings.Join(w.cfg.Prefixes, ", "))
	}
	value, err := kvstore.Encode(k, w.stamped(m))
	if err != nil {
		return err
	}
	w.want(desired{key: k, value: value})
	return nil
}

// Remove wants the key not to exist. It returns at once.
func (w *Writer) Remove(k kvstore.Key) error {
	if !w.mine(k.String()) {
		return fmt.Errorf("remove %s: not below %s", k, strings.Join(w.cfg.Prefixes, ", "))
	}
	w.want(desired{key: k, gone: true})
	return nil
}

// Prune says that what is wanted is complete: from now on own keys that are
// stored but not wanted are removed, also when the store is read again.
func (w *Writer) Prune() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pruning = true
	w.compare()
	w.signal()
}

// Flush blocks until all that was set or removed before the call (or something
// newer for the same key) is committed, or the context ends. It fails when the
// store refuses one of those keys.
func (w *Writer) Flush(ctx context.Context) error {
	w.mu.Lock()
	target := w.seq
	w.mu.Unlock()
	for {
		w.mu.Lock()
		left, last, ch := 0, w.lastErr, w.changed
		var refused []error
		for key, s := range w.dirty {
			if s.first > target || w.waits(key, s) > 0 {
				continue
			}
			if err := w.refused[key]; err != nil {
				refused = append(refused, err)
			} else {
				left++
			}
		}
		w.mu.Unlock()
		if left == 0 {
			return errors.Join(refused...)
		}
		select {
		case <-ch:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("flush: %d keys are not written: %w", left, ctx.Err()), last)
		}
	}
}

// Status is a snapshot for people and metrics.
func (w *Writer) Status() WriterStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := WriterStatus{Pending: len(w.dirty), Err: w.lastErr, Refused: map[string]error{}}
	for _, d := range w.desired {
		if !d.gone {
			s.Keys++
		}
	}
	for k, err := range w.refused {
		s.Refused[k] = err
	}
	return s
}

// Run writes until the context ends and returns nil then.
func (w *Writer) Run(ctx context.Context) error {
	wait := backoff.New(backoffMin, backoffMax)
	for {
		served, err := w.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if served {
			wait.Reset()
		}
		if err != nil {
			w.failed(err)
			w.cfg.Log.Warn("writing interrupted", "error", err)
		}
		if wait.Wait(ctx) != nil {
			return nil
		}
	}
}

func (w *Writer) mine(key string) bool {
	for _, p := range w.cfg.Prefixes {
		if key == p || strings.HasSuffix(p, "/") && strings.HasPrefix(key, p) {
			return true
		}
	}
	return false
}

// stamped is m, or a copy of it with updated_at set where it has none.
func (w *Writer) stamped(m proto.Message) proto.Message {
	if m == nil {
		return m
	}
	f := m.ProtoReflect().Descriptor().Fields().ByName("updated_at")
	if f == nil || m.ProtoReflect().Get(f).Int() != 0 {
		return m
	}
	c := proto.Clone(m)
	c.ProtoReflect().Set(f, protoreflect.ValueOfInt64(w.cfg.Now().UnixNano()))
	return c
}

func (w *Writer) want(d desired) {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := d.key.String()
	w.desired[key] = d
	w.seq++
	s, ok := w.dirty[key]
	if !ok {
		s.first = w.seq
	}
	s.last = w.seq
	w.dirty[key] = s
	delete(w.refused, key)
	w.signal()
}

// signal wakes the session. The caller holds mu.
func (w *Writer) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// announce wakes all who wait for progress. The caller holds mu.
func (w *Writer) announce() {
	close(w.changed)
	w.changed = make(chan struct{})
}

func (w *Writer) failed(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lastErr = err
}
