// SPDX-License-Identifier: Apache-2.0

// Package printer prints what commands list: as a table for people, as JSON or
// YAML with stable field names for programs.
//
// JSON and YAML are made from the API's protobuf messages: every field is there,
// also when empty; numbers are numbers; times (fields that are, or end in, a
// Unix nanosecond time) are RFC 3339.
package printer

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"sigs.k8s.io/yaml"

	"github.com/hawser-mesh/hawser/internal/plain"
)

// Format is a value of -o.
type Format string

// Formats.
const (
	Table Format = "table"
	JSON  Format = "json"
	YAML  Format = "yaml"
)

// Set implements pflag.Value.
func (f *Format) Set(s string) error {
	switch Format(s) {
	case Table, JSON, YAML:
		*f = Format(s)
		return nil
	}
	return fmt.Errorf("must be table, json or yaml")
}

// String implements pflag.Value.
func (f *Format) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *Format) Type() string { return "table|json|yaml" }

// Columns describes a table: a header and how to get each cell from a row.
type Columns[T any] []Column[T]

// Column is one column.
type Column[T any] struct {
	Header string
	Cell   func(T) string
}

// List prints rows in the format. An empty table prints what `empty` says, on
// the same writer.
func List[T proto.Message](w io.Writer, f Format, rows []T, cols Columns[T], empty string) error {
	if f == JSON || f == YAML {
		values := make([]any, len(rows))
		for i, r := range rows {
			values[i] = Value(r)
		}
		return Encode(w, f, values)
	}
	return table(w, rows, cols, empty)
}

// Rows is List for rows that are no messages; their JSON tags name the fields.
func Rows[T any](w io.Writer, f Format, rows []T, cols Columns[T], empty string) error {
	if f == JSON || f == YAML {
		if rows == nil {
			rows = []T{}
		}
		return Encode(w, f, rows)
	}
	return table(w, rows, cols, empty)
}

func table[T any](w io.Writer, rows []T, cols Columns[T], empty string) error {
	if len(rows) == 0 {
		_, err := fmt.Fprintln(w, empty)
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	headers := make([]string, len(cols))
	for i, c := range cols {
		headers[i] = c.Header
	}
	writeRow(tw, headers)
	for _, r := range rows {
		cells := make([]string, len(cols))
		for i, c := range cols {
			if cells[i] = plain.Cell(c.Cell(r)); cells[i] == "" {
				cells[i] = "–"
			}
		}
		writeRow(tw, cells)
	}
	return tw.Flush()
}

// One prints a single object: `table` prints it for people.
func One(w io.Writer, f Format, m proto.Message, table func(io.Writer) error) error {
	if f == JSON || f == YAML {
		return Encode(w, f, Value(m))
	}
	return table(w)
}

// Encode prints any value as JSON or YAML.
func Encode(w io.Writer, f Format, v any) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if f == YAML {
		if raw, err = yaml.JSONToYAML(raw); err != nil {
			return fmt.Errorf("encode: %w", err)
		}
		_, err = w.Write(raw)
		return err
	}
	_, err = fmt.Fprintln(w, string(raw))
	return err
}

// Fields prints aligned "name: value" lines; pairs with an empty value are left
// out.
func Fields(w io.Writer, pairs ...string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			_, _ = fmt.Fprintf(tw, "%s:\t%s\n", pairs[i], plain.Cell(pairs[i+1]))
		}
	}
	return tw.Flush()
}

func writeRow(w io.Writer, cells []string) {
	_, _ = fmt.Fprintln(w, strings.TrimRight(strings.Join(cells, "\t"), " "))
}

// Value turns a message into maps and slices for encoding.
func Value(m proto.Message) any { return message(m.ProtoReflect()) }

func message(m protoreflect.Message) map[string]any {
	out := map[string]any{}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if fd.ContainingOneof() != nil && !m.Has(fd) {
			continue
		}
		out[fd.JSONName()] = field(m, fd)
	}
	return out
}

func field(m protoreflect.Message, fd protoreflect.FieldDescriptor) any {
	v := m.Get(fd)
	switch {
	case fd.IsList():
		list := make([]any, v.List().Len())
		for i := range list {
			list[i] = scalar(fd, v.List().Get(i))
		}
		return list
	case fd.IsMap():
		out := map[string]any{}
		v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			out[k.String()] = scalar(fd.MapValue(), v)
			return true
		})
		return out
	case fd.Message() != nil && !m.Has(fd):
		return nil
	}
	return scalar(fd, v)
}

func scalar(fd protoreflect.FieldDescriptor, v protoreflect.Value) any {
	switch fd.Kind() {
	case protoreflect.MessageKind:
		return message(v.Message())
	case protoreflect.EnumKind:
		if d := fd.Enum().Values().ByNumber(v.Enum()); d != nil {
			return string(d.Name())
		}
		return int32(v.Enum())
	case protoreflect.Int64Kind:
		if isTime(string(fd.Name())) {
			if v.Int() == 0 {
				return nil
			}
			return time.Unix(0, v.Int()).UTC().Format(time.RFC3339Nano)
		}
	}
	return v.Interface()
}

func isTime(name string) bool {
	return name == "time" || name == "since" || strings.HasSuffix(name, "_since") || strings.HasSuffix(name, "_at")
}

// Age is how long ago a Unix nanosecond time was, short: 38s, 4m12s, 3h2m, 12d.
func Age(unixNano int64) string {
	if unixNano == 0 {
		return ""
	}
	return Duration(time.Since(time.Unix(0, unixNano)))
}

// Duration is a duration, short.
func Duration(d time.Duration) string {
	switch d = d.Round(time.Second); {
	case d < 0:
		return "0s"
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// Bytes is a size, short: 61 KiB.
func Bytes(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	if f < 10 {
		return fmt.Sprintf("%.1f %s", f, units[i])
	}
	return fmt.Sprintf("%.0f %s", f, units[i])
}

// Count is a number with thousands separated: 1,204.
func Count[N ~int | ~int64 | ~uint32 | ~uint64](n N) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// Labels are labels as one cell. A value that could be taken for more than one
// is quoted.
func Labels(ls []string) string {
	out := make([]string, len(ls))
	for i, l := range ls {
		key, value, _ := strings.Cut(l, "=")
		switch {
		case strings.ContainsAny(key, `," `): // a key has no '='
			out[i] = strconv.Quote(l)
		case strings.ContainsAny(value, `,=" `):
			out[i] = key + "=" + strconv.Quote(value)
		default:
			out[i] = l
		}
	}
	return strings.Join(out, ",")
}
