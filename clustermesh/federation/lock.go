// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	lockTTL  = 5 // seconds
	lockPoll = 200 * time.Millisecond
	lockFree = 2 * time.Second // for giving it back
)

// importLock is the right to write state/<peer>/: a leased key whose create
// revision every import transaction compares.
type importLock struct {
	kv     kvstore.Client
	key    string
	rev    int64
	lost   <-chan struct{}
	cancel context.CancelFunc
}

// lockImport waits for the lock until the context ends. replica names the API
// server: a lock left by an earlier run of the same one is taken over at once,
// another's when its lease has ended.
func lockImport(ctx context.Context, kv kvstore.Client, own, peer, replica string) (*importLock, error) {
	key := kvstore.NewKey(kvstore.Private, own, kvstore.KindElection, "import", peer).String()
	holder := replica + "/" + uuid()
	lctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	lease, lost, err := kv.Grant(lctx, lockTTL)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("lock import of %s: %w", peer, err)
	}
	for {
		res, err := kv.Txn(ctx, []kvstore.Cmp{kvstore.Absent(key)},
			[]kvstore.Op{{Kind: kvstore.OpPut, Key: key, Value: []byte(holder), Lease: lease}},
			[]kvstore.Op{kvstore.Read(key)})
		if err == nil && res.Succeeded {
			return &importLock{kv: kv, key: key, rev: res.Revision, lost: lost, cancel: cancel}, nil
		}
		if err == nil && len(res.Gets) > 0 && len(res.Gets[0]) > 0 {
			at := res.Gets[0][0]
			switch {
			case string(at.Value) == holder: // our Put whose answer was lost
				return &importLock{kv: kv, key: key, rev: at.CreateRevision, lost: lost, cancel: cancel}, nil
			case strings.HasPrefix(string(at.Value), replica+"/"):
				_, err = kv.Txn(ctx, []kvstore.Cmp{kvstore.AtRevision(key, at.ModRevision)}, []kvstore.Op{kvstore.Delete(key)}, nil)
				if err == nil {
					continue
				}
			}
		}
		select {
		case <-time.After(lockPoll):
		case <-lost:
			err = fmt.Errorf("the lease ended")
		case <-ctx.Done():
			err = ctx.Err()
		}
		if ctx.Err() != nil || isClosed(lost) {
			cancel()
			return nil, fmt.Errorf("lock import of %s: %w", peer, err)
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// fence is the condition that the lock is still held.
func (l *importLock) fence() []kvstore.Cmp {
	return []kvstore.Cmp{{Key: l.key, Target: kvstore.CmpCreateRev, Rev: l.rev}}
}

// release gives the lock back; if that fails its lease ends within 5 s.
func (l *importLock) release(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lockFree)
	defer cancel()
	_, _ = l.kv.Txn(ctx, l.fence(), []kvstore.Op{kvstore.Delete(l.key)}, nil)
	l.cancel()
}
