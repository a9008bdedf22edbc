// SPDX-License-Identifier: Apache-2.0

package invitation

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"
)

func testToken(t testing.TB) Token {
	t.Helper()
	tok, err := New("east", "", []string{"10.0.0.1:4243", "[fd00::1]:4243"}, [32]byte{1, 2}, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestTokenSurvivesItsText(t *testing.T) {
	tok := testToken(t)
	got, err := Parse(" \n" + tok.String() + "\n")
	if err != nil || got.String() != tok.String() || got.Inviter != "east" || got.CAHash != tok.CAHash || string(got.Secret) != string(tok.Secret) || !got.Expires.Equal(tok.Expires) {
		t.Errorf("got %v %v", got, err)
	}
	if other := testToken(t); other.ID == tok.ID || string(other.Secret) == string(tok.Secret) {
		t.Error("two tokens share their id or secret")
	}
}

func TestDamagedTokensAreRefused(t *testing.T) {
	text := testToken(t).String()
	weak := testToken(t)
	weak.Secret = weak.Secret[:8]
	far := testToken(t)
	far.Endpoints = []string{"nowhere"}
	for name, tc := range map[string]struct{ text, says string }{
		"empty":         {"", "empty"},
		"not a token":   {"eyJhbGciOi", "does not start with hw1"},
		"later version": {"hw2" + text[3:], `version "hw2" is not known`},
		"cut off":       {text[:len(text)-7], "cut off"},
		"only a prefix": {"hw1.", "cut off"},
		"altered":       {flip(text, len(text)/2), "altered"},
		"strange signs": {text[:20] + "!!" + text[22:], "damaged"},
		"long":          {text + strings.Repeat("A", maxTokenText), "longer"},
		"weak secret":   {weak.String(), "secret has 64 bits"},
		"no port":       {far.String(), "want host:port"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(tc.text)
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error %v, want %q in it", err, tc.says)
			}
			if err != nil && strings.Contains(err.Error(), base64.RawURLEncoding.EncodeToString(testToken(t).Secret)) {
				t.Error("the error shows the secret")
			}
		})
	}
}

// flip changes one character of the encoded body into another valid one.
func flip(s string, at int) string {
	c := byte('A')
	if s[at] == c {
		c = 'B'
	}
	return s[:at] + string(c) + s[at+1:]
}

func FuzzParse(f *testing.F) {
	f.Add(testToken(f).String())
	f.Add("hw1.")
	f.Add("hw1.AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := Parse(s)
		if err != nil {
			return
		}
		again, err := Parse(tok.String())
		if err != nil || again.String() != tok.String() {
			t.Errorf("%q parses, but not its own text %q: %v", s, tok, err)
		}
	})
}
