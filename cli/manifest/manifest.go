// SPDX-License-Identifier: Apache-2.0

// Package manifest is what `apply -f` and `delete -f` have in common.
package manifest

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/cli/printer"
	"github.com/hawser-mesh/hawser/cli/session"
)

// maxSize bounds a manifest, in bytes.
const maxSize = 16 << 20

// Bind adds -f to a command.
func Bind(cmd *cobra.Command, files *[]string) {
	cmd.Flags().StringSliceVarP(files, "filename", "f", nil, "file with the objects, - for standard input; may be repeated")
}

// NewDelete is the command that deletes one object by name or those of files. del
// gets either a namespace and a name or a file's text.
func NewDelete(s *session.Session, cmd *cobra.Command, namespaceHelp string,
	del func(ctx context.Context, client hawserv1.MeshClient, namespace, name, source string) ([]*hawserv1.AppliedObject, error)) *cobra.Command {
	var files []string
	var namespace string
	cmd.Use, cmd.Args = "delete [NAMESPACE/]NAME | -f FILE", cobra.MaximumNArgs(1)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		given := cmd.Flags().Changed("namespace")
		switch {
		case (len(args) == 0) == (len(files) == 0):
			return session.Usage("say what to delete: [NAMESPACE/]NAME, or -f FILE, and not both")
		case len(args) == 0 && given:
			return session.Usage("--namespace is of NAME: objects in files say their own")
		}
		if len(args) == 1 {
			namespace, name, err := split(args[0], namespace, given)
			if err != nil {
				return err
			}
			return One(cmd, s, func(ctx context.Context, client hawserv1.MeshClient) ([]*hawserv1.AppliedObject, error) {
				return del(ctx, client, namespace, name, "")
			})
		}
		return Each(cmd, s, files, func(ctx context.Context, client hawserv1.MeshClient, source string) ([]*hawserv1.AppliedObject, error) {
			return del(ctx, client, "", "", source)
		})
	}
	Bind(cmd, &files)
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", namespaceHelp)
	return cmd
}

// split reads NAME, of the namespace of the flag, or NAMESPACE/NAME, with which the
// flag must agree if it is given.
func split(text, namespace string, given bool) (ns, name string, err error) {
	ns, name, ok := strings.Cut(text, "/")
	if !ok {
		ns, name = namespace, text
	}
	switch {
	case ns == "" || name == "" || strings.Contains(name, "/"):
		return "", "", session.Usage("%q: want NAME with --namespace, or NAMESPACE/NAME", text)
	case given && ns != namespace:
		return "", "", session.Usage("%q: --namespace says %q", text, namespace)
	}
	return ns, name, nil
}

// Each sends each file's text and prints what became of its objects. Files are
// sent in order; the first error ends it.
func Each(cmd *cobra.Command, s *session.Session, files []string,
	send func(context.Context, hawserv1.MeshClient, string) ([]*hawserv1.AppliedObject, error)) error {
	if len(files) == 0 {
		return session.Usage("nothing to do: give -f FILE")
	}
	sources := make([]string, len(files))
	for i, f := range files {
		text, err := Read(cmd.InOrStdin(), f)
		if err != nil {
			return session.Usage("%v", err)
		}
		sources[i] = text
	}
	return One(cmd, s, func(ctx context.Context, client hawserv1.MeshClient) ([]*hawserv1.AppliedObject, error) {
		var all []*hawserv1.AppliedObject
		for i, text := range sources {
			objects, err := send(ctx, client, text)
			all = append(all, objects...)
			if err != nil {
				return all, fmt.Errorf("%s: %w", name(files[i]), err)
			}
		}
		return all, nil
	})
}

// One makes one call to the API server and prints the objects it answers with.
func One(cmd *cobra.Command, s *session.Session,
	call func(context.Context, hawserv1.MeshClient) ([]*hawserv1.AppliedObject, error)) error {
	client, conn, err := s.Mesh()
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := s.Deadline(cmd.Context())
	defer cancel()
	objects, err := call(ctx, client)
	if len(objects) > 0 || err == nil {
		if perr := show(cmd.OutOrStdout(), s.Output, objects); perr != nil {
			return perr
		}
	}
	return err
}

func show(w io.Writer, f printer.Format, objects []*hawserv1.AppliedObject) error {
	if f != printer.Table {
		return printer.List(w, f, objects, nil, "")
	}
	for _, o := range objects {
		where := o.GetNamespace() + "/"
		if o.GetNamespace() == "_" {
			where = ""
		}
		if _, err := fmt.Fprintf(w, "%s %s%s %s\n", o.GetKind(), where, o.GetName(), o.GetAction()); err != nil {
			return err
		}
	}
	return nil
}

func name(file string) string {
	if file == "-" {
		return "standard input"
	}
	return file
}

// Read is the text of a file, or of standard input for "-".
func Read(stdin io.Reader, file string) (string, error) {
	r := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer func() { _ = f.Close() }()
		r = f
	}
	raw, err := io.ReadAll(io.LimitReader(r, maxSize+1))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", name(file), err)
	}
	if len(raw) > maxSize {
		return "", fmt.Errorf("%s is larger than %s", name(file), printer.Bytes(maxSize))
	}
	if !utf8.Valid(raw) {
		return "", fmt.Errorf("%s is not text: it holds bytes that are not UTF-8; give a manifest in YAML or JSON", name(file))
	}
	return string(raw), nil
}
