// SPDX-License-Identifier: Apache-2.0

// Package manifest reads what people apply: YAML or JSON, one or many
// documents, as plain values with their paths, so that whoever interprets them
// can refuse each field that it does not understand by its name.
//
// Start with Parse, then Root and the methods of Node. What a document means is
// its reader's business (policy/api, loadbalancer).
package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	yamlv2 "go.yaml.in/yaml/v2"
	"sigs.k8s.io/yaml"
)

const (
	// MaxSize is the largest input accepted, in bytes: a document must fit in
	// one record of the keyspace.
	MaxSize  = 1 << 20
	maxDepth = 64
)

// Document is one document of the input.
type Document struct {
	Index int    // from 1
	Text  string // as it was written, without the separators
	// Value is made of map[string]any, []any, string, json.Number, bool, nil.
	Value any
}

// Parse splits source into documents and decodes each. Keys that appear twice
// are refused. Empty documents are left out; an input without any is refused.
func Parse(source []byte) ([]Document, error) {
	if len(source) > MaxSize {
		return nil, fmt.Errorf("input has %d bytes: more than %d", len(source), MaxSize)
	}
	docs, err := parse(source)
	if err != nil {
		return nil, err
	}
	if len(docs) == 0 {
		return nil, errors.New("input holds no document")
	}
	return docs, nil
}

func parse(source []byte) ([]Document, error) {
	if t := bytes.TrimLeft(source, " \t\r\n"); len(t) > 0 && (t[0] == '{' || t[0] == '[') {
		docs, err := parseJSON(source)
		var syntax *json.SyntaxError
		if err == nil || !errors.As(err, &syntax) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return docs, err
		}
		// Not JSON after all: YAML may begin with a flow collection.
	}
	var docs []Document
	for _, text := range splitYAML(string(source)) {
		v, err := decodeYAML(text)
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", len(docs)+1, err)
		}
		if v == nil {
			continue
		}
		docs = append(docs, Document{Index: len(docs) + 1, Text: text, Value: v})
	}
	return docs, nil
}

func parseJSON(source []byte) ([]Document, error) {
	var docs []Document
	d := json.NewDecoder(bytes.NewReader(source))
	d.UseNumber()
	for {
		start := d.InputOffset()
		v, err := decode(d, "", 0)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", len(docs)+1, err)
		}
		text := strings.TrimSpace(string(source[start:d.InputOffset()]))
		docs = append(docs, Document{Index: len(docs) + 1, Text: text, Value: v})
	}
}

func decodeYAML(text string) (any, error) {
	j, err := yaml.YAMLToJSONStrict([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("parse YAML: %w", err)
	}
	if err := single(text); err != nil {
		return nil, fmt.Errorf("parse YAML: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(j))
	d.UseNumber()
	return decode(d, "", 0)
}

// single checks that nothing follows the first value of a text: the decoder
// would not read it, and so ignore it.
func single(text string) error {
	d := yamlv2.NewDecoder(strings.NewReader(text))
	for range 2 {
		err := d.Decode(&skipped{})
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return errors.New("there is more after the end of the document")
}

// skipped is a YAML value that is not looked at.
type skipped struct{}

// UnmarshalYAML does nothing.
func (*skipped) UnmarshalYAML(func(any) error) error { return nil }

// decode reads one value. It differs from Unmarshal in refusing duplicate keys
// and in bounding the depth.
func decode(d *json.Decoder, path string, depth int) (any, error) {
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	delim, ok := t.(json.Delim)
	if !ok {
		return t, nil
	}
	if depth == maxDepth {
		return nil, fmt.Errorf("%.60s…: nested deeper than %d", path, maxDepth)
	}
	if delim == '[' {
		return decodeList(d, path, depth)
	}
	return decodeMap(d, path, depth)
}

func decodeList(d *json.Decoder, path string, depth int) (any, error) {
	list := []any{}
	for d.More() {
		v, err := decode(d, fmt.Sprintf("%s[%d]", path, len(list)), depth+1)
		if err != nil {
			return nil, unexpected(err)
		}
		list = append(list, v)
	}
	_, err := d.Token()
	return list, unexpected(err)
}

func decodeMap(d *json.Decoder, path string, depth int) (any, error) {
	m := map[string]any{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, unexpected(err)
		}
		k, ok := t.(string)
		if !ok {
			return nil, fmt.Errorf("%s: a key must be a string", path)
		}
		if _, twice := m[k]; twice {
			return nil, fmt.Errorf("%s: given twice", join(path, k))
		}
		if m[k], err = decode(d, join(path, k), depth+1); err != nil {
			return nil, unexpected(err)
		}
	}
	_, err := d.Token()
	return m, unexpected(err)
}

// unexpected turns the end of input inside a value into an error of its own.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// splitYAML cuts at the document markers "---" and "...", which count only at
// the start of a line.
func splitYAML(s string) []string {
	var docs []string
	var b strings.Builder
	for line := range strings.Lines(s) {
		word := strings.TrimRight(line, "\r\n")
		rest, marker := strings.CutPrefix(word, "---")
		if marker && (rest == "" || rest[0] == ' ' || rest[0] == '\t') {
			docs = append(docs, b.String())
			b.Reset()
			if rest = strings.TrimSpace(rest); rest != "" {
				b.WriteString(rest + "\n")
			}
			continue
		}
		if strings.TrimRight(word, " \t") == "..." {
			docs = append(docs, b.String())
			b.Reset()
			continue
		}
		b.WriteString(line)
	}
	return append(docs, b.String())
}
