// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hawser-mesh/hawser/cli/session"
)

// inTime runs something that asks several times, and computes, within one
// --timeout, and says so when that was too short.
func inTime(ctx context.Context, s *session.Session, run func(context.Context) error) error {
	ctx, cancel := s.Deadline(ctx)
	defer cancel()
	err := run(ctx)
	if errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded {
		return &session.Error{Code: session.CouldNotAsk, Err: fmt.Errorf("not finished within --timeout %s: there is no answer; give it longer, as in --timeout 1m (%w)", s.Timeout, err)}
	}
	return err
}
