// SPDX-License-Identifier: Apache-2.0

// Package kvstore is the keyspace: the layout of the keys under hawser/v1/, the
// rules a value must meet to be believed, and the small Client that the rest of
// Hawser reads and writes it through.
//
// Start with schema.go for the keys, then records.go for what is validated, then
// this file for the Client. Only kvstore/etcd implements Client; typed views of
// a subtree are kvstore/store's. Nothing here knows etcd.
package kvstore

import (
	"context"
	"errors"
	"fmt"
)

// KV is one stored key with its value and the revisions that created it and
// last wrote it.
type KV struct {
	Key            string
	Value          []byte
	CreateRevision int64
	ModRevision    int64
}

// Event is one change seen by a watch. A deletion has no value; its ModRevision
// is the revision that deleted the key.
type Event struct {
	KV
	Deleted bool
}

// Page is part of a listing. All pages of one listing are read at Revision.
type Page struct {
	KVs      []KV
	Revision int64
	More     bool
}

// WatchBatch is what a watch delivers: the events of one or more whole
// revisions, or, without events, the news that nothing up to Revision is
// missing.
type WatchBatch struct {
	Events   []Event
	Revision int64
}

// ErrCompacted says that the history asked for is gone: list again.
var ErrCompacted = errors.New("revision is compacted")

// ErrFutureRevision says that a position is ahead of the store: the store was
// wiped or restored from an older backup. List again.
var ErrFutureRevision = errors.New("revision is ahead of the store")

// ErrDenied says that the store's access rules forbid the call.
var ErrDenied = errors.New("permission denied by the keyspace's access rules")

// ErrNoSpace says that the store is full and takes no writes.
var ErrNoSpace = errors.New("the store is full and takes no writes; hawser status says what to do")

// Cmp is one condition of a transaction. Exactly one of its tests applies,
// chosen by Target.
type Cmp struct {
	Key    string
	Prefix bool // holds for every key below Key; with Absent: there is none
	Target CmpTarget
	Rev    int64
	Value  []byte
}

// CmpTarget names what a Cmp tests.
type CmpTarget int

// Tests of a Cmp.
const (
	// CmpAbsent holds when the key does not exist.
	CmpAbsent CmpTarget = iota
	// CmpExists holds when it does.
	CmpExists
	// CmpModRev holds when the key was last written at Rev.
	CmpModRev
	// CmpCreateRev holds when the key was created at Rev.
	CmpCreateRev
	// CmpValue holds when the key's value equals Value.
	CmpValue
	// CmpNotAfter holds when the key was not written after Rev; with Prefix none
	// below it was.
	CmpNotAfter
)

// Op is one operation of a transaction.
type Op struct {
	Kind   OpKind
	Key    string
	Value  []byte
	Prefix bool  // OpDelete, OpGet: everything below Key
	Lease  Lease // OpPut only
}

// OpKind names what an Op does.
type OpKind int

// Kinds of Op.
const (
	OpPut OpKind = iota
	OpDelete
	OpGet
)

// Lease is a handle to a lease; zero is none. Data keys carry no lease: only
// presence/ and elections/ do.
type Lease int64

// TxnResult is the outcome of a transaction.
type TxnResult struct {
	Succeeded bool
	Revision  int64
	// Gets holds the result of each OpGet, in order.
	Gets [][]KV
}

// MaxTxnOps is the number of operations that one branch of a transaction may
// have.
const MaxTxnOps = 128

// Client is a connection to one store. It is safe for concurrent use. Every call
// blocks until the answer, the context's end, or the client's own deadline (5 s
// by default), whichever is first; errors name the operation and the key.
type Client interface {
	// Get reads one key. A missing key is (nil, revision, nil).
	Get(ctx context.Context, key string) (*KV, int64, error)
	// List reads the keys below prefix in key order, up to limit of them,
	// beginning with the first key after `after` (empty: the first key), at
	// revision rev (0: the newest; take the Page's Revision for the next page).
	List(ctx context.Context, prefix, after string, limit int64, rev int64) (Page, error)
	// Txn commits thens if all cmps hold, else elses. At most 128 operations a
	// branch.
	Txn(ctx context.Context, cmps []Cmp, thens, elses []Op) (TxnResult, error)
	// Watch calls fn, from one goroutine and in order, with what happens below
	// prefix from revision rev on, until the context ends or fn returns an
	// error, which Watch returns. The first batch, at rev-1 and without events,
	// says that the watch is established. It needs a leader and asks for progress
	// notifications. It returns ErrCompacted or ErrFutureRevision when rev
	// cannot be served, and another error when the connection broke.
	Watch(ctx context.Context, prefix string, rev int64, fn func(WatchBatch) error) error
	// Grant makes a lease of ttl seconds and keeps it alive until the context
	// ends or the lease is lost; then done is closed.
	Grant(ctx context.Context, ttl int64) (l Lease, done <-chan struct{}, err error)
	// Endpoint is the address in use, for status.
	Endpoint() string
	// Close ends all calls.
	Close() error
}

// Put is an Op that stores value under key.
func Put(key string, value []byte) Op { return Op{Kind: OpPut, Key: key, Value: value} }

// Delete is an Op that removes key.
func Delete(key string) Op { return Op{Kind: OpDelete, Key: key} }

// Read is an Op that reads key.
func Read(key string) Op { return Op{Kind: OpGet, Key: key} }

// Absent is a Cmp that holds when key does not exist.
func Absent(key string) Cmp { return Cmp{Key: key, Target: CmpAbsent} }

// AtRevision is a Cmp that holds when key was last written at rev.
func AtRevision(key string, rev int64) Cmp { return Cmp{Key: key, Target: CmpModRev, Rev: rev} }

// NoneAfter is a Cmp that holds when no key below prefix was written after rev.
// Deletions are not noticed.
func NoneAfter(prefix string, rev int64) Cmp {
	return Cmp{Key: prefix, Prefix: true, Target: CmpNotAfter, Rev: rev}
}

// BadRecord is the error for a key or value that breaks the keyspace's rules.
// Such a record is skipped, counted and reported; it never stops a reader.
type BadRecord struct {
	Key    string
	Reason string // one word for counters: key, decode, mismatch, range, labels, address, size
	Detail string
}

func (e *BadRecord) Error() string {
	return fmt.Sprintf("record %s: %s: %s", e.Key, e.Reason, e.Detail)
}
