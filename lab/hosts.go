// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
)

// ServiceName is the name by which pods find a service.
func ServiceName(namespace, name string) string { return name + "." + namespace + ".mesh" }

// WriteHosts gives the pods of all clusters the names of the services that
// their own cluster has now, with the addresses it gave them. It holds the lab's
// lock until it returns.
func WriteHosts(ctx context.Context, name string) error {
	unlock, err := lockLab(withTimeout(ctx, lockWait), names{name})
	if err != nil {
		return err
	}
	defer unlock()
	l, err := Open(name)
	if err != nil {
		return err
	}
	return l.refreshHosts(ctx)
}

func (l *Lab) refreshHosts(ctx context.Context) error {
	for _, c := range l.Clusters() {
		vips, err := serviceNames(ctx, c)
		if err != nil {
			return err
		}
		err = l.update(func(s *State) {
			if s.Hosts == nil {
				s.Hosts = map[string]map[string]string{}
			}
			s.Hosts[c.Name] = vips
		})
		if err != nil {
			return err
		}
	}
	var errs []error
	for _, p := range l.Pods() {
		errs = append(errs, l.writeHosts(p))
	}
	return errors.Join(errs...)
}

func serviceNames(ctx context.Context, c Cluster) (map[string]string, error) {
	out := map[string]string{}
	err := withMesh(ctx, c.Socket, func(ctx context.Context, m hawserv1.MeshClient) error {
		r, err := m.ListServices(ctx, &hawserv1.ListServicesRequest{})
		for _, s := range r.GetServices() {
			if len(s.GetVips()) > 0 {
				out[ServiceName(s.GetNamespace(), s.GetName())] = s.GetVips()[0]
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list services of %s: %w", c.Name, err)
	}
	return out, nil
}

// writeHosts stores what the pod sees as /etc/hosts. The file is written in
// place: it is mounted in the pod, and a new file would not be seen there.
func (l *Lab) writeHosts(p Pod) error {
	var b strings.Builder
	b.WriteString("127.0.0.1 localhost\n")
	for _, a := range p.Addresses {
		fmt.Fprintf(&b, "%s %s\n", a, p.Name)
	}
	vips := l.snapshot().Hosts[p.Cluster]
	for _, name := range sortedKeys(vips) {
		fmt.Fprintf(&b, "%s %s\n", vips[name], name)
	}
	if err := os.MkdirAll(filepath.Dir(p.Place.Hosts), 0o755); err != nil {
		return fmt.Errorf("write names of pod %s: %w", p.Name, err)
	}
	if err := os.WriteFile(p.Place.Hosts, []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("write names of pod %s: %w", p.Name, err)
	}
	return nil
}
