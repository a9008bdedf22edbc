// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
)

// gc deletes the endpoints of the network that the runtime does not name as
// valid. A runtime that names none at all, not even an empty list, has nothing
// collected. Those of other networks, those of which the network is not known,
// and those that are being created stay.
func gc(args *skel.CmdArgs) error {
	c, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	valid, told, err := c.valid()
	if err != nil || !told {
		return err
	}
	all, err := listEndpoints(c)
	if err != nil {
		return cniError(err, "collect endpoints", c)
	}
	var errs []error
	for _, e := range all {
		at := types.GCAttachment{ContainerID: e.GetContainerId(), IfName: e.GetIfname()}
		if e.GetNetwork() == "" || e.GetNetwork() != c.Name || e.GetState() == "creating" || valid[at] {
			continue
		}
		if err := deleteEndpoint(c, at); err != nil {
			errs = append(errs, fmt.Errorf("container %s, %s: %w", at.ContainerID, at.IfName, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return types.NewError(types.ErrTryAgainLater, "collect endpoints", err.Error())
	}
	return nil
}

// valid are the attachments that the runtime still has, and whether it told.
func (c *config) valid() (valid map[types.GCAttachment]bool, told bool, err error) {
	raw := c.Valid
	if raw == nil {
		raw = c.OldValid
	}
	if raw == nil {
		return nil, false, nil
	}
	var list []types.GCAttachment
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, false, types.NewError(types.ErrDecodingFailure, "read cni.dev/valid-attachments", err.Error())
	}
	valid = map[types.GCAttachment]bool{}
	for _, a := range list {
		valid[a] = true
	}
	return valid, true, nil
}
