// SPDX-License-Identifier: Apache-2.0

// Package plain makes text of others fit to be shown: what a peer says of itself
// goes through logs, the API and terminals.
//
// Start with Text. What a text means, and whether it is believed, is not asked here.
package plain

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Text is a text on one line without what would move a terminal's cursor or turn
// the text around: each such character is a blank. It is valid UTF-8, and of at
// most so many bytes; what is too long is cut between two characters.
func Text(text string, most int) string {
	text = strings.Map(visible, strings.ToValidUTF8(text, "?"))
	if len(text) <= most {
		return text
	}
	for most > 0 && !utf8.RuneStart(text[most]) {
		most--
	}
	return text[:most]
}

// Cell is Text of any length, and may have several lines and tabs.
func Cell(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return r
		}
		return visible(r)
	}, strings.ToValidUTF8(text, "?"))
}

func visible(r rune) rune {
	if !unicode.IsPrint(r) {
		return ' '
	}
	return r
}
