// SPDX-License-Identifier: Apache-2.0

package loadbalancer

import (
	"net/netip"
	"slices"

	"github.com/hawser-mesh/hawser/internal/manifest"
)

// Families of a service's addresses, as manifests call them.
const (
	IPv4 = "IPv4"
	IPv6 = "IPv6"
)

// FamilyOf is the family of an address.
func FamilyOf(a netip.Addr) string {
	if a.Unmap().Is4() {
		return IPv4
	}
	return IPv6
}

// Families are those of which a service gets an address, the preferred one
// first: what its record wants, all when it says nothing, of what the cluster
// has.
func Families(wanted, have []string) (out []string) {
	if len(wanted) == 0 {
		wanted = []string{IPv4, IPv6}
	}
	for _, f := range wanted {
		if slices.Contains(have, f) && !slices.Contains(out, f) {
			out = append(out, f)
		}
	}
	return out
}

// parseFamilies reads of which families the service wants addresses. A manifest
// that says nothing wants all that the cluster has; ipFamilies without a policy
// are exactly those.
func (o *Object) parseFamilies(spec manifest.Node) {
	policy := ""
	if f, ok := spec.Field("ipFamilyPolicy"); ok {
		switch policy, _ = f.Text(); policy {
		case "SingleStack", "PreferDualStack", "RequireDualStack":
		default:
			f.Problem("%q: want SingleStack, PreferDualStack or RequireDualStack", policy)
		}
	}
	var listed []string
	if f, ok := spec.Field("ipFamilies"); ok {
		listed = parseFamilyList(f)
	}
	for _, a := range o.ClusterIPs {
		f := FamilyOf(a)
		if policy == "SingleStack" && len(listed) > 0 && f != listed[0] {
			spec.At("spec.clusterIPs").Problem("%s is no %s address", a, listed[0])
		}
		if !slices.Contains(listed, f) && len(listed) < len(o.ClusterIPs) {
			listed = append(listed, f)
		}
	}
	switch {
	case policy == "SingleStack" && len(listed) > 1:
		spec.At("spec.ipFamilyPolicy").Problem("SingleStack, but two families are wanted")
	case policy == "SingleStack" && len(listed) == 0:
		listed = []string{IPv4}
	case policy == "SingleStack", policy == "" && len(listed) == 1 && len(o.ClusterIPs) == 0:
	case len(listed) == 1:
		listed = append(listed, map[string]string{IPv4: IPv6, IPv6: IPv4}[listed[0]])
	case policy == "" && len(listed) == 2:
		o.DualStack = true
	}
	o.DualStack = o.DualStack || policy == "RequireDualStack"
	if len(listed) == 2 && listed[0] == IPv4 {
		listed = nil // as without
	}
	o.Service.IpFamilies = listed
}

func parseFamilyList(f manifest.Node) (out []string) {
	for _, item := range f.List() {
		text, ok := item.Text()
		switch {
		case !ok:
		case text != IPv4 && text != IPv6:
			item.Problem("%q is not a family: want %s or %s", text, IPv4, IPv6)
		case slices.Contains(out, text):
			item.Problem("%s is given twice", text)
		default:
			out = append(out, text)
		}
	}
	return out
}

// ofFamily are the backends that an address can have: a packet keeps its family.
func ofFamily(all []BackendView, vip netip.Addr) []BackendView {
	return slices.DeleteFunc(slices.Clone(all), func(b BackendView) bool { return b.Addr.Is4() != vip.Is4() })
}
