// SPDX-License-Identifier: Apache-2.0

package manifest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
)

// Node is a value inside a document. Its methods record what is wrong with the
// path of the value, and Problems of the root joins it all.
type Node struct {
	Path  string
	Value any
	errs  *[]error
}

// Root is the node of a whole document.
func (d Document) Root() Node { return Node{Value: d.Value, errs: new([]error)} }

// Problem records "path: message".
func (n Node) Problem(format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	if n.Path != "" {
		msg = n.Path + ": " + msg
	}
	*n.errs = append(*n.errs, errors.New(msg))
}

// Problems are all problems recorded below the same root, in order.
func (n Node) Problems() []error { return *n.errs }

// At is a node with the same value and another path, for messages about rules
// that have a shorter name.
func (n Node) At(path string) Node { return Node{Path: path, Value: n.Value, errs: n.errs} }

// Has reports whether the node is a mapping with the field.
func (n Node) Has(field string) bool {
	m, _ := n.Value.(map[string]any)
	_, ok := m[field]
	return ok
}

// Field is a field of a mapping; ok is false when it is absent. A field that is
// null is a problem and counts as absent: whether it means "none" or "any" is
// for the writer to say.
func (n Node) Field(field string) (Node, bool) {
	m, _ := n.Value.(map[string]any)
	v, ok := m[field]
	if !ok {
		return Node{}, false
	}
	c := Node{Path: join(n.Path, field), Value: v, errs: n.errs}
	if v == nil {
		c.Problem("is null: give it a value, or leave it out")
		return Node{}, false
	}
	return c, true
}

// Later are fields that are understood and not supported yet, each with what to
// do instead, where there is something.
type Later map[string]string

// NotYet are such fields for which nothing else does.
func NotYet(fields ...string) Later {
	later := Later{}
	for _, f := range fields {
		later[f] = ""
	}
	return later
}

// Only records a problem for each field that is neither supported nor in later,
// and another for each that is in later. It reports whether the node is a mapping.
func (n Node) Only(supported []string, later Later) bool {
	m, ok := n.Value.(map[string]any)
	if !ok {
		n.Problem("must be a mapping")
		return false
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		c := Node{Path: join(n.Path, k), errs: n.errs}
		instead, known := later[k]
		switch {
		case slices.Contains(supported, k):
		case known && instead != "":
			c.Problem("not supported yet: %s", instead)
		case known:
			c.Problem("not supported yet")
		default:
			c.Problem("unknown field")
		}
	}
	return true
}

// Entries are the fields of a mapping, sorted by name. Null values are problems
// and left out.
func (n Node) Entries() (names []string, nodes []Node) {
	m, ok := n.Value.(map[string]any)
	if !ok {
		n.Problem("must be a mapping")
		return nil, nil
	}
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if c, ok := n.Field(k); ok {
			names = append(names, k)
			nodes = append(nodes, c)
		}
	}
	return names, nodes
}

// List are the items of a list. Items that are null are problems and left out.
func (n Node) List() []Node {
	l, ok := n.Value.([]any)
	if !ok {
		n.Problem("must be a list")
		return nil
	}
	out := make([]Node, 0, len(l))
	for i, v := range l {
		c := Node{Path: fmt.Sprintf("%s[%d]", n.Path, i), Value: v, errs: n.errs}
		if v == nil {
			c.Problem("is null: give it a value, or leave it out")
			continue
		}
		out = append(out, c)
	}
	return out
}

// Text is a string.
func (n Node) Text() (string, bool) {
	s, ok := n.Value.(string)
	if _, isBool := n.Value.(bool); isBool {
		n.Problem("must be a string: unquoted y, yes, on, n, no, off, true and false are none in YAML; quote it")
	} else if !ok {
		n.Problem("must be a string")
	}
	return s, ok
}

// Bool is true or false.
func (n Node) Bool() (value, ok bool) {
	value, ok = n.Value.(bool)
	if !ok {
		n.Problem("must be true or false")
	}
	return value, ok
}

// Uint is a whole number from 0 to limit.
func (n Node) Uint(limit uint64) (uint64, bool) {
	if s, ok := n.Value.(json.Number); ok {
		if v, err := strconv.ParseUint(s.String(), 10, 64); err == nil && v <= limit {
			return v, true
		}
	}
	n.Problem("must be a whole number from 0 to %d", limit)
	return 0, false
}

// FieldText is the text of a field, empty when absent.
func (n Node) FieldText(field string) string {
	c, ok := n.Field(field)
	if !ok {
		return ""
	}
	s, _ := c.Text()
	return s
}

func join(path, field string) string {
	if path == "" {
		return field
	}
	return path + "." + field
}
