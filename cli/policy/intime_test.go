// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/status"

	"github.com/hawser-mesh/hawser/cli/session"
)

// One --timeout is for all that a command asks and computes; what came of it in
// time is told as it is.
func TestInTime(t *testing.T) {
	s := &session.Session{Timeout: time.Millisecond}
	for name, of := range map[string]func(error) error{
		"computing": func(err error) error { return err },
		"asking":    func(err error) error { return status.FromContextError(err).Err() },
	} {
		err := inTime(t.Context(), s, func(ctx context.Context) error {
			again, cancel := s.Deadline(ctx) // of one request: it ends no later
			defer cancel()
			<-again.Done()
			if ctx.Err() == nil {
				t.Errorf("%s: the whole may take longer than one request", name)
			}
			return of(again.Err())
		})
		if err == nil || !strings.Contains(err.Error(), "not finished within --timeout 1ms") || session.ExitCode(err) != session.CouldNotAsk {
			t.Errorf("%s: error %v, exit code %d", name, err, session.ExitCode(err))
		}
	}
	answer := session.Answer("denied")
	s.Timeout = time.Hour
	if err := inTime(t.Context(), s, func(context.Context) error { return answer }); !errors.Is(err, answer) || session.ExitCode(err) != session.No {
		t.Errorf("an answer in time: %v", err)
	}
}
