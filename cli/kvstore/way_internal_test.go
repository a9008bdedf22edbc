// SPDX-License-Identifier: Apache-2.0

package kvstore

import (
	"slices"
	"testing"
)

func TestEndpointsFromAfar(t *testing.T) {
	got := fromAfar([]string{"https://127.0.0.1:2379", "https://10.0.1.3:2379", "https://[::1]:2379"}, "api.example:4244")
	if want := []string{"api.example:2379", "10.0.1.3:2379", "api.example:2379"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
