// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"strings"
	"testing"
)

// What is no text is said to be none, by the name of its file.
func TestReadRefusesWhatIsNoText(t *testing.T) {
	if _, err := Read(strings.NewReader("a\xff\xfe"), "-"); err == nil || !strings.Contains(err.Error(), "standard input is not text") {
		t.Errorf("bytes that are not UTF-8: %v", err)
	}
	if text, err := Read(strings.NewReader("kind: Ü"), "-"); err != nil || text != "kind: Ü" {
		t.Errorf("text: %q, %v", text, err)
	}
}
