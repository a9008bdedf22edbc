// SPDX-License-Identifier: Apache-2.0

package reconcile

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// maxErrors is how many errors of one pass over a table are told. A map that is
// full refuses thousands of writes for one reason.
const maxErrors = 3

// few is an error with at most maxErrors of those that it joins, the same ones for
// the same set of errors, and how many there are besides.
func few(err error) error {
	if err == nil {
		return nil
	}
	all := leaves(err)
	if len(all) <= maxErrors {
		return err
	}
	slices.SortFunc(all, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(append(all[:maxErrors:maxErrors], fmt.Errorf("and %d more", len(all)-maxErrors))...)
}

// leaves are the errors that errors.Join has put together.
func leaves(err error) (out []error) {
	joined, ok := err.(interface{ Unwrap() []error }) //nolint:errorlint // the join itself, not one inside
	if !ok {
		return []error{err}
	}
	for _, e := range joined.Unwrap() {
		out = append(out, leaves(e)...)
	}
	return out
}
