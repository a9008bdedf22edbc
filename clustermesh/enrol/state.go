// SPDX-License-Identifier: Apache-2.0

package enrol

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/pki"
)

// Names inside a node's TLS directory; ca.crt, tls.crt and tls.key are beside
// them.
const (
	stateFile  = "enrolment.json"
	pendingKey = "tls.key.new"
	leafName   = "tls"
)

// State is what a node keeps of its enrolment.
type State struct {
	Cluster       string   `json:"cluster"`
	Node          string   `json:"node"`
	EtcdEndpoints []string `json:"etcdEndpoints"`
	APIEndpoints  []string `json:"apiEndpoints"`
	ClusterBits   uint32   `json:"clusterBits"`
	TunnelPort    uint32   `json:"tunnelPort"`
	TokenID       string   `json:"tokenID"` // of the token that admitted it; no secret
}

func newState(p *hawserv1.ClusterParameters, tokenID string) State {
	return State{
		Cluster: p.GetName(), Node: p.GetNode(), EtcdEndpoints: p.GetEtcdEndpoints(), APIEndpoints: p.GetApiEndpoints(),
		ClusterBits: p.GetClusterBits(), TunnelPort: p.GetTunnelPort(), TokenID: tokenID,
	}
}

func (s State) id() pki.ID {
	return pki.ID{Cluster: s.Cluster, Role: pki.RoleAgent, Name: s.Node}
}

// Load reads the enrolment of a TLS directory. One without is an
// fs.ErrNotExist: its certificate, if any, was issued by hand.
func Load(dir string) (State, error) {
	raw, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return State{}, fmt.Errorf("read enrolment: %w", err)
	}
	var s State
	if err := json.Unmarshal(raw, &s); err != nil {
		return State{}, fmt.Errorf("read enrolment %s: %w", filepath.Join(dir, stateFile), err)
	}
	return s, nil
}

func (s State) save(dir string) error {
	raw, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("write enrolment: %w", err)
	}
	return pki.WriteFile(filepath.Join(dir, stateFile), append(raw, '\n'))
}

// remove ignores what is not there.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}
