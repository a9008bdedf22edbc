// SPDX-License-Identifier: Apache-2.0

// Package cni is the CNI plugin (specification 1.1): it asks the node's agent
// for an endpoint and prints what the agent made. Start reading at Main.
//
// The agent does all work in the kernel; the plugin only translates, so that it
// stays small, and so that what runs for a pod never depends on which version of
// the plugin added it.
package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/identity/labels"
)

// DefaultSocket is where the agent answers when the network configuration does
// not say.
const DefaultSocket = "/run/hawser/agent.sock"

// config is the plugin's part of the network configuration.
type config struct {
	types.PluginConf
	// Socket is the agent's unix socket.
	Socket string `json:"socket,omitempty"`
	// Valid is what GC keeps, and OldValid its name in drafts of the specification,
	// which libcni gives as well.
	Valid    json.RawMessage `json:"cni.dev/valid-attachments,omitempty"`
	OldValid json.RawMessage `json:"cni.dev/attachments,omitempty"`
	Args     struct {
		CNI struct {
			// Labels follow the convention of the CNI project's CONVENTIONS.md.
			Labels []label `json:"labels,omitempty"`
			// NamespaceLabels are those of the pod's namespace.
			NamespaceLabels []label `json:"namespaceLabels,omitempty"`
			// Ports are the pod's own names for its ports.
			Ports []namedPort `json:"ports,omitempty"`
		} `json:"cni"`
	} `json:"args"`
}

type label struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

type namedPort struct {
	Name     string `json:"name"`
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"` // tcp when empty
}

// podArgs are the CNI_ARGS that Kubernetes runtimes pass. Others are ignored.
type podArgs struct {
	types.CommonArgs
	K8S_POD_NAMESPACE          types.UnmarshallableString //revive:disable-line the names are the protocol
	K8S_POD_NAME               types.UnmarshallableString
	K8S_POD_UID                types.UnmarshallableString
	K8S_POD_INFRA_CONTAINER_ID types.UnmarshallableString
}

func parseConfig(stdin []byte) (*config, error) {
	c := &config{Socket: DefaultSocket}
	if err := json.Unmarshal(stdin, c); err != nil {
		return nil, types.NewError(types.ErrDecodingFailure, "read network configuration", err.Error())
	}
	if !filepath.IsAbs(c.Socket) {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "read network configuration",
			fmt.Sprintf("socket %q is not an absolute path", c.Socket))
	}
	return c, nil
}

// addRequest translates what the runtime passed into the agent's request.
func addRequest(args *skel.CmdArgs, c *config) (*hawserv1.AddEndpointRequest, error) {
	pod := podArgs{CommonArgs: types.CommonArgs{IgnoreUnknown: true}}
	if args.Args != "" {
		if err := types.LoadArgs(args.Args, &pod); err != nil {
			return nil, types.NewError(types.ErrInvalidEnvironmentVariables, "read CNI_ARGS", err.Error())
		}
	}
	source := labels.CNI
	if pod.K8S_POD_NAME != "" {
		source = labels.Kubernetes
	}
	texts, err := labelTexts(c.Args.CNI.Labels, source)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "read args.cni.labels", err.Error())
	}
	ofNamespace, err := labelTexts(c.Args.CNI.NamespaceLabels, labels.Namespace)
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetworkConfig, "read args.cni.namespaceLabels", err.Error())
	}
	name := string(pod.K8S_POD_NAME)
	if name == "" {
		name = args.ContainerID
	}
	var ports []string
	for _, p := range c.Args.CNI.Ports {
		ports = append(ports, fmt.Sprintf("%s=%d/%s", p.Name, p.Port, p.Protocol))
	}
	return &hawserv1.AddEndpointRequest{
		NamedPorts:  ports,
		Network:     c.Name,
		ContainerId: args.ContainerID, Netns: args.Netns, Ifname: args.IfName,
		Namespace: string(pod.K8S_POD_NAMESPACE), Name: name, Labels: texts, NamespaceLabels: ofNamespace,
	}, nil
}

// labelTexts gives each label the source. A key that names a source itself is
// refused: a pod's description may not claim labels that Hawser sets.
func labelTexts(in []label, source string) ([]string, error) {
	var out []string
	var errs []error
	for _, l := range in {
		if strings.Contains(l.Key, ":") {
			errs = append(errs, fmt.Errorf("label %q: a key may not contain ':'", l.Key))
			continue
		}
		parsed, err := labels.Parse(source+":"+l.Key+"="+l.Value, source)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		out = append(out, parsed.String())
	}
	return out, errors.Join(errs...)
}
