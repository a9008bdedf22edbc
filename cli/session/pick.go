// SPDX-License-Identifier: Apache-2.0

package session

import "strings"

// Named is an object of a namespace.
type Named interface {
	GetNamespace() string
	GetName() string
}

// Pick finds the object that NAME or NAMESPACE/NAME, and --namespace where it is
// given, name: what is its kind, for errors. A name that several namespaces have
// is wrong use.
func Pick[T Named](what string, rows []T, namespace, name string) (T, error) {
	var none T
	given := name
	if ns, n, ok := strings.Cut(name, "/"); ok {
		if namespace != "" && namespace != ns {
			return none, Usage("%s %q: --namespace says %q", what, name, namespace)
		}
		namespace, name = ns, n
	}
	if name == "" || namespace == "" && strings.HasPrefix(given, "/") {
		return none, Usage("%s %q: want NAME or NAMESPACE/NAME; see: hawser %s list", what, given, what)
	}
	var found []T
	var in []string
	for _, r := range rows {
		if r.GetName() == name && (namespace == "" || r.GetNamespace() == namespace) {
			found = append(found, r)
			in = append(in, r.GetNamespace()+"/"+name)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return none, Usage("%q is more than one %s: give one of %s", name, what, strings.Join(in, ", "))
	case namespace != "":
		return none, Answer("no %s %q in namespace %q; see: hawser %s list", what, name, namespace, what)
	}
	return none, Answer("no %s %q; see: hawser %s list", what, name, what)
}
