// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy"
)

// Endpoint states.
const (
	stateCreating  = "creating"
	stateRestoring = "restoring" // adopted; its pinned verdicts hold until the keyspace is read
	stateReady     = "ready"
	stateDeleting  = "deleting"
)

// record is an endpoint as it is on disk. It is written before anything of the
// endpoint is made and removed after everything of it is gone.
type record struct {
	ID          uint16             `json:"id"`
	ContainerID string             `json:"containerID"`
	IfName      string             `json:"ifName"`
	Netns       string             `json:"netns"`
	Network     string             `json:"network,omitempty"` // the runtime's name of what it was added to
	Namespace   string             `json:"namespace"`
	Name        string             `json:"name"`
	Ports       []policy.NamedPort `json:"ports,omitempty"`
	Labels      []string           `json:"labels"` // all, of which a filter picks those of the identity
	Addr        netip.Addr         `json:"addr"`
	Addr6       netip.Addr         `json:"addr6,omitzero"` // invalid: it has none
	// IdentityLabels are those that Identity and RuleSet are of.
	IdentityLabels []string        `json:"identityLabels,omitempty"`
	Audit          bool            `json:"audit,omitempty"` // what policy would drop is reported and passes
	State          string          `json:"state"`
	Identity       identity.Number `json:"identity"`
	RuleSet        uint32          `json:"ruleSet"`
	HostDevice     string          `json:"hostDevice"`
	IfIndex        uint32          `json:"ifIndex"`
	HostMAC        [6]byte         `json:"hostMAC"`
	PodMAC         [6]byte         `json:"podMAC"`
	CreatedAt      int64           `json:"createdAt"` // Unix ns
}

// key names an endpoint for the container runtime.
func (r *record) key() string { return r.ContainerID + "/" + r.IfName }

// stands reports whether all of the endpoint was made and nothing is removed.
func (r *record) stands() bool { return r.State == stateReady || r.State == stateRestoring }

// identityLabels are those of the endpoint's labels that make its identity.
func (r *record) identityLabels(f labels.Filter) (labels.Set, error) {
	ls, err := labels.ParseSet(r.Labels, labels.CNI)
	return f.Apply(ls), err
}

// remembered are the labels that the record's identity and rule set are of. What
// counts may have changed since it was written.
func (r *record) remembered() (labels.Set, error) {
	was := r.IdentityLabels
	if was == nil { // written before there was a filter
		was = r.Labels
	}
	return labels.ParseSet(was, labels.CNI)
}

// subject is what its rule set is for, given the labels that make its identity.
func (r *record) subject(ls labels.Set) policy.Subject {
	return policy.Subject{Labels: ls, Ports: r.Ports, Audit: r.Audit}
}

// addrs are the endpoint's addresses, IPv4 first.
func (r *record) addrs() []netip.Addr {
	if !r.Addr6.IsValid() {
		return []netip.Addr{r.Addr}
	}
	return []netip.Addr{r.Addr, r.Addr6}
}

// workload is namespace/name.
func (r *record) workload() string { return r.Namespace + "/" + r.Name }

// recordStore is a directory with one JSON file an endpoint.
type recordStore struct{ dir string }

func openRecords(stateDir string) (*recordStore, error) {
	dir := filepath.Join(stateDir, "endpoints")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the endpoints' directory: %w", err)
	}
	return &recordStore{dir}, nil
}

func (s *recordStore) path(id uint16) string { return filepath.Join(s.dir, fmt.Sprintf("%d.json", id)) }

// save writes a record; a crash leaves the old one or the new one.
func (s *recordStore) save(r *record) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("save endpoint %d: %w", r.ID, err)
	}
	tmp := s.path(r.ID) + ".new"
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return fmt.Errorf("save endpoint %d: %w", r.ID, err)
	}
	if err := os.Rename(tmp, s.path(r.ID)); err != nil {
		return fmt.Errorf("save endpoint %d: %w", r.ID, err)
	}
	return nil
}

// remove deletes a record; a missing one is no error.
func (s *recordStore) remove(id uint16) error {
	if err := os.Remove(s.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget endpoint %d: %w", id, err)
	}
	return nil
}

// load reads all records. Unreadable ones are set aside and returned as an error
// beside those that could be read.
func (s *recordStore) load() ([]*record, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("read the endpoints' directory: %w", err)
	}
	var out []*record
	var errs []error
	for _, e := range entries {
		path := filepath.Join(s.dir, e.Name())
		switch {
		case strings.HasSuffix(e.Name(), ".bad"):
			continue
		case strings.HasSuffix(e.Name(), ".new"):
			errs = append(errs, os.Remove(path))
			continue
		}
		r, err := readRecord(path)
		if err != nil {
			errs = append(errs, fmt.Errorf("endpoint record %s (set aside as .bad): %w", path, err), os.Rename(path, path+".bad"))
			continue
		}
		out = append(out, r)
	}
	return out, errors.Join(errs...)
}

func readRecord(path string) (*record, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &record{}
	if err := json.Unmarshal(raw, r); err != nil {
		return nil, err
	}
	if r.ID == 0 || !r.Addr.IsValid() || r.ContainerID == "" {
		return nil, errors.New("incomplete")
	}
	return r, nil
}
