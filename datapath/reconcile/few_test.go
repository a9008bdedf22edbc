// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"fmt"
	"testing"
)

func TestFew(t *testing.T) {
	var many error
	for _, i := range []int{7, 3, 9, 1, 5} {
		many = errors.Join(many, fmt.Errorf("write %d", i))
	}
	for _, c := range []struct {
		err  error
		want string
	}{
		{errors.New("one"), "one"},
		{errors.Join(errors.New("b"), errors.New("a")), "b\na"},
		{fmt.Errorf("round: %w", errors.New("one")), "round: one"},
		{errors.Join(many, errors.New("bump")), "bump\nwrite 1\nwrite 3\nand 3 more"},
	} {
		if got := few(c.err); got.Error() != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
	if few(nil) != nil {
		t.Error("no error became one")
	}
}
