// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"time"

	"github.com/hawser-mesh/hawser/kvstore"
)

// ended tells who counts of an operation. It is deferred, with the error that the
// operation returns.
func (c *Client) ended(operation string, begun time.Time, err *error) {
	c.observe(operation, resultOf(*err), time.Since(begun))
}

func txnResult(succeeded bool) string {
	if succeeded {
		return "ok"
	}
	return "unmet"
}

// resultOf is the word for how an operation ended.
func resultOf(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, kvstore.ErrDenied):
		return "denied"
	case errors.Is(err, kvstore.ErrNoSpace):
		return "no_space"
	case errors.Is(err, kvstore.ErrCompacted):
		return "compacted"
	case errors.Is(err, kvstore.ErrFutureRevision):
		return "future"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	case errors.Is(err, context.Canceled):
		return "canceled"
	}
	return "error"
}
