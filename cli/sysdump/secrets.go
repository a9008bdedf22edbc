// SPDX-License-Identifier: Apache-2.0

package sysdump

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"regexp"
	"strconv"
)

// removed stands for what was taken out.
const removed = "<removed>"

// rule takes one form of secret out of a text: what matches becomes with, or what
// replace makes of it. It is looked for where one of the words is, and for a few
// lines behind: a pattern alone would take its time with megabytes of log.
type rule struct {
	words   []string // in small letters
	whole   bool     // if a word is there, look everywhere
	find    *regexp.Regexp
	with    string
	replace func([]byte) []byte
}

// behind is how many lines behind a word are looked at, for values of several.
const behind = 60

// names are what fields, variables, flags and parameters with secrets are called,
// alone or as a part of a longer name; called are the words in them.
const names = `(?:password|passwd|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|client-key-data|gossip[_-]?keys?|psk|credential|cookie)[A-Za-z0-9_.-]*`

func called() []string {
	return []string{"passw", "passphrase", "pwd", "secret", "token", "apikey", "api_key", "api-key", "accesskey", "access_key", "access-key",
		"privatekey", "private_key", "private-key", "client-key-data", "gossip", "psk", "credential", "cookie"}
}

// rules are the forms in which secrets are taken out, in the order in which they
// are looked for.
func rules() []rule {
	re := regexp.MustCompile
	called := called()
	return []rule{
		// Keys in PEM, whole or cut off at either end, also with their line ends written as \n.
		{words: []string{"private key-----"}, whole: true, find: re(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\z)`), with: "<private key removed>"},
		{words: []string{"private key-----"}, whole: true, find: re(`(?:[A-Za-z0-9+/=]|\\n|\s)*-----END [A-Z0-9 ]*PRIVATE KEY-----`), with: "<private key removed>"},
		// Tokens: ours, and those of JSON Web Token.
		{words: []string{"hw"}, find: re(`hw[0-9]+\.[A-Za-z0-9_-]{16,}`), with: "hw1.<token removed>"},
		{words: []string{"eyj"}, find: re(`eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*`), with: removed},
		// Headers, in a dump of a request and as a field.
		{words: []string{"authorization"}, find: re(`(?i)(authorization(?:\\?["'])?\s*[:=]\s*\[?(?:\\?["'])?)(?:[A-Za-z]+ +)?[^\s"',\\\]]+`), with: "${1}" + removed},
		{words: []string{"bearer", "basic"}, find: re(`(?i)\b(bearer|basic) +[A-Za-z0-9._~+/=-]{8,}`), with: "${1} " + removed},
		{words: []string{"cookie"}, find: re(`(?i)(cookie\s*:\s*)[^\n]*`), with: "${1}" + removed},
		// User and password of a URL.
		{words: []string{"://"}, find: re(`(://[^/\s:@"']*:)[^@\s"'/]+@`), with: "${1}" + removed + "@"},
		// A block of YAML below such a name.
		{words: called, find: re(`(?im)^([^\n:]*` + names + `["']?[ \t]*:[ \t]*[|>][0-9+-]*[ \t]*\n)(?:[ \t]+.*(?:\n|\z)|[ \t]*\n)+`), with: "${1}  " + removed + "\n"},
		// A list under such a name.
		{words: called, find: re(`(?i)(` + names + `(?:\\?["'])?\s*[:=]\s*)\[[^\]]*\]`), with: "${1}[" + removed + "]"},
		// name: "value", name='value', \"name\":\"value\" and without quotes.
		{words: called, find: re(`(?i)(` + names + `(?:\\?["'])?[ \t]*[:=][ \t]*)\\"(?:[^"\\]|\\[^"])*\\"`), with: "${1}" + removed},
		{words: called, find: re(`(?i)(` + names + `(?:\\?["'])?\s*[:=]\s*)"(?:[^"\\]|\\.)*"`), with: `${1}"` + removed + `"`},
		{words: called, find: re(`(?i)(` + names + `(?:\\?["'])?[ \t]*[:=][ \t]*)'[^']*'`), with: `${1}'` + removed + `'`},
		{words: called, find: re(`(?i)` + names + `(?:\\?["'])?[ \t]*[:=][ \t]*[^\s"',&}\[\]|>\\<]+`), replace: bareValue},
		// --password value
		{words: called, find: re(`(?i)(--?[A-Za-z0-9_.-]*` + names + `[ \t]+)[^\s"'-][^\s"']*`), with: "${1}" + removed},
	}
}

// bareValue replaces a value without quotes, unless it is a word of JSON or a
// small number: those are settings and counters.
func bareValue(text []byte) []byte {
	i := bytes.LastIndexAny(text, ":= \t") + 1
	value := string(text[i:])
	if j := bytes.IndexAny(text, ":="); j >= 0 && len(bytes.TrimLeft(text[j+1:], " \t")) > len(value) {
		value = string(bytes.TrimLeft(text[j+1:], " \t")) // it holds one of them itself
		i = len(text) - len(value)
	}
	if n, err := strconv.Atoi(value); value == "true" || value == "false" || value == "null" || err == nil && n >= 0 && len(value) < 4 {
		return text
	}
	return append(bytes.Clone(text[:i]), removed...)
}

// clean takes the secrets out of a text.
func clean(rules []rule, data []byte) []byte {
	data = base64Secrets(data)
	for _, r := range rules {
		data = r.apply(data)
	}
	return data
}

func (r *rule) apply(data []byte) []byte {
	swap := func(part []byte) []byte {
		if r.replace != nil {
			return r.find.ReplaceAllFunc(part, r.replace)
		}
		return r.find.ReplaceAll(part, []byte(r.with))
	}
	small := bytes.ToLower(data)
	if len(small) != len(data) {
		return swap(data) // letters whose small ones have another length
	}
	if r.whole {
		if !hasWord(small, r.words) {
			return data
		}
		return swap(data)
	}
	var out []byte
	for at := 0; at < len(data); {
		end := at + lineEnd(small[at:])
		if !hasWord(small[at:end], r.words) {
			out, at = append(out, data[at:end]...), end
			continue
		}
		for n := 0; n < behind && end < len(data); n++ {
			next := end + lineEnd(small[end:])
			if hasWord(small[end:next], r.words) {
				n = 0
			}
			end = next
		}
		out, at = append(out, swap(data[at:end])...), end
	}
	return out
}

// lineEnd is where the first line of a text ends, behind its end mark.
func lineEnd(text []byte) int {
	if i := bytes.IndexByte(text, '\n'); i >= 0 {
		return i + 1
	}
	return len(text)
}

func hasWord(text []byte, words []string) bool {
	for _, w := range words {
		if bytes.Contains(text, []byte(w)) {
			return true
		}
	}
	return false
}

// base64Secrets takes out what base64 alone gives away: private keys, and 16 or 32
// bytes, as keys of gossip and of ciphers have (hashes look the same).
func base64Secrets(data []byte) []byte {
	var out []byte
	for i := 0; i < len(data); {
		start := i
		for i < len(data) && isBase64(data[i]) {
			i++
		}
		pads := i
		for pads < len(data) && data[pads] == '=' && pads-i < 2 {
			pads++
		}
		run := data[start:i]
		switch {
		case len(run) == 43 && pads-i == 1, len(run) == 22 && pads-i == 2:
			out, i = append(out, removed...), pads
		case len(run) >= 40 && isPrivateKey(run):
			out, i = append(out, "<private key removed>"...), pads
		default:
			out = append(out, run...)
			if i < len(data) {
				out = append(out, data[i])
				i++
			}
		}
	}
	return out
}

func isBase64(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '+' || c == '/' || c == '-' || c == '_'
}

// isPrivateKey reports whether base64 holds a private key, as PEM or DER.
func isPrivateKey(run []byte) bool {
	raw, err := base64.RawStdEncoding.DecodeString(string(run))
	if err != nil {
		return false
	}
	_, err8 := x509.ParsePKCS8PrivateKey(raw)
	_, errEC := x509.ParseECPrivateKey(raw)
	_, err1 := x509.ParsePKCS1PrivateKey(raw)
	return bytes.Contains(raw, []byte("PRIVATE KEY-----")) || err8 == nil || errEC == nil || err1 == nil
}
