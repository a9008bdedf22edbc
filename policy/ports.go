// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/labels"
	"github.com/hawser-mesh/hawser/policy/api"
)

// NamedPort is a port that a workload has a name for.
type NamedPort struct {
	Name     string
	Protocol uint8
	Port     uint16
}

func (p NamedPort) compare(o NamedPort) int {
	return cmp.Or(strings.Compare(p.Name, o.Name), cmp.Compare(p.Protocol, o.Protocol), cmp.Compare(p.Port, o.Port))
}

func sortedPorts(ports []NamedPort) []NamedPort {
	ports = slices.Clone(ports)
	slices.SortFunc(ports, NamedPort.compare)
	return slices.Compact(ports)
}

// Subject is what endpoints have in common that share a rule set.
type Subject struct {
	Labels labels.Set
	Ports  []NamedPort // what they call their ports
	// Audit has what would be denied reported instead of dropped.
	Audit bool
}

// Name is what a rule set keeps its number by.
func (s Subject) Name() string {
	if len(s.Ports) == 0 && !s.Audit {
		return s.Labels.Hash()
	}
	s.Ports = sortedPorts(s.Ports)
	sum := sha256.Sum256([]byte(s.key()))
	return hex.EncodeToString(sum[:])
}

// key tells subjects apart whose ports are sorted.
func (s Subject) key() string {
	var b strings.Builder
	b.WriteString(s.Labels.Canonical())
	for _, p := range s.Ports {
		fmt.Fprintf(&b, ";%s/%d/%d", p.Name, p.Protocol, p.Port)
	}
	if s.Audit {
		b.WriteString(";;audit")
	}
	return b.String()
}

// SetNamedPorts tells the names that the workloads with an identity have for
// their ports, all of them together. An unknown identity is ignored.
func (e *Engine) SetNamedPorts(n identity.Number, ports []NamedPort) {
	e.mu.Lock()
	defer e.mu.Unlock()
	ports = sortedPorts(ports)
	id, ok := e.identities[n]
	if !ok || slices.Equal(id.ports, ports) {
		return
	}
	id.ports = ports
	for _, s := range id.matched {
		e.markSelector(s, n)
	}
}

// cellsOf are the cells that make up a port or a range of ports. A range becomes
// blocks of 4, 16, 64 … ports whose first is a multiple of their size, which the
// kernel finds by looking up the port without its last bits.
func cellsOf(p api.Port) []cell {
	if p.End == 0 {
		return []cell{{proto: p.Protocol, port: p.Port}}
	}
	if p.Port <= 1 && p.End == 65535 {
		return []cell{{proto: p.Protocol}} // nobody has port 0
	}
	var cells []cell
	for first, last := uint32(p.Port), uint32(p.End); first <= last; {
		wild := uint8(0)
		for wild < maxWild && first%(4<<wild) == 0 && first+(4<<wild)-1 <= last {
			wild += 2
		}
		cells = append(cells, cell{proto: p.Protocol, port: uint16(first), wild: wild})
		first += 1 << wild
	}
	return cells
}

// resolve appends what a part says about ports by their name.
func (p *part) resolve(vs []verdict, ports []NamedPort) []verdict {
	return resolve(vs, p.named, ports, verdict{deny: p.deny, origin: p.origin})
}

// resolve appends a verdict for each of the ports that has one of the names.
func resolve(vs []verdict, named []namedPort, ports []NamedPort, v verdict) []verdict {
	for _, n := range named {
		for _, port := range ports {
			if port.Name == n.name && port.Protocol == n.proto {
				v.cell = cell{proto: port.Protocol, port: port.Port}
				vs = append(vs, v)
			}
		}
	}
	return vs
}
