// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/policy"
	"github.com/hawser-mesh/hawser/policy/api"
)

// namedPorts is what the addresses of each identity call their ports.
type namedPorts struct {
	byKey map[string]portNames
	byID  map[identity.Number]map[string]struct{} // keys
}

type portNames struct {
	id    identity.Number
	ports []policy.NamedPort
}

func newNamedPorts() *namedPorts {
	return &namedPorts{byKey: map[string]portNames{}, byID: map[identity.Number]map[string]struct{}{}}
}

// set tells what the record under a key says, and returns the identities that
// this concerns. Most addresses have no names and take no room.
func (p *namedPorts) set(key string, n identity.Number, ports []policy.NamedPort) (changed []identity.Number) {
	if old, ok := p.byKey[key]; ok {
		delete(p.byKey, key)
		if delete(p.byID[old.id], key); len(p.byID[old.id]) == 0 {
			delete(p.byID, old.id)
		}
		changed = append(changed, old.id)
	}
	if len(ports) == 0 {
		return changed
	}
	p.byKey[key] = portNames{n, ports}
	if p.byID[n] == nil {
		p.byID[n] = map[string]struct{}{}
	}
	p.byID[n][key] = struct{}{}
	return append(changed, n)
}

// of are all names of an identity's ports.
func (p *namedPorts) of(n identity.Number) (out []policy.NamedPort) {
	for key := range p.byID[n] {
		out = append(out, p.byKey[key].ports...)
	}
	return out
}

// maxNamedPorts is how many names one endpoint may have.
const maxNamedPorts = 256

// parseNamedPorts reads "name=port/protocol".
func parseNamedPorts(texts []string) ([]policy.NamedPort, error) {
	if len(texts) > maxNamedPorts {
		return nil, fmt.Errorf("%d named ports: more than %d", len(texts), maxNamedPorts)
	}
	name := regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?$`)
	protocols := map[string]uint8{"": api.TCP, "tcp": api.TCP, "udp": api.UDP, "sctp": api.SCTP}
	var out []policy.NamedPort
	for _, text := range texts {
		key, rest, _ := strings.Cut(text, "=")
		number, protocol, _ := strings.Cut(rest, "/")
		port, err := strconv.ParseUint(number, 10, 16)
		proto, known := protocols[strings.ToLower(protocol)]
		if err != nil || port == 0 || !known || !name.MatchString(key) {
			return nil, fmt.Errorf("named port %.64q: want name=port/protocol, as in http=8080/tcp", text)
		}
		out = append(out, policy.NamedPort{Name: key, Protocol: proto, Port: uint16(port)})
	}
	return out, nil
}

// namedPorts are the endpoint's for its IP record.
func (r *record) namedPorts() (out []*keyspacev1.NamedPort) {
	for _, p := range r.Ports {
		out = append(out, &keyspacev1.NamedPort{Name: p.Name, Port: uint32(p.Port), Protocol: keyspacev1.Protocol(p.Protocol)})
	}
	return out
}

// shortOfRoom tells the objects that mean more ports by name than they have room
// for.
func shortOfRoom(own string, all []policy.Shortage) (out []*hawserv1.Problem) {
	for _, s := range all {
		p := &hawserv1.Problem{
			Object: policyObject + s.Object,
			Problem: fmt.Sprintf("%d names at addresses of cluster %s are not let out to: by the names of ports beside its ipBlocks it means more than %d ports there",
				s.Names, s.Cluster, policy.MaxBlockPorts),
			Fix: "write the ports' numbers, or ipBlocks that hold fewer pods",
		}
		if s.Cluster != own {
			p.Fix += "; if " + s.Cluster + " has more addresses than it should have: hawser mesh grant " + s.Cluster + " --max-ips NUMBER"
		}
		out = append(out, p)
	}
	return out
}

// retireEvery is how long the identities of prefixes are kept at least after the
// last policy that used them: the kernel forgets them first.
const retireEvery = 2 * time.Second

// retirePrefixes forgets identities of prefixes that no policy uses any more,
// until the context ends.
func (v *view) retirePrefixes(ctx context.Context) error {
	tick := time.NewTicker(retireEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if v.engine.DropRetired() {
				v.flush()
			}
		}
	}
}
