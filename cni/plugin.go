// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	"github.com/hawser-mesh/hawser/internal/nsthread"
)

// How long each command may take. Runtimes give a plugin minutes and repeat
// what failed; an agent that does not answer in this time is worth a retry.
const (
	addTimeout   = 30 * time.Second
	otherTimeout = 10 * time.Second
)

// Main runs the command that the environment names (CNI_COMMAND), prints result
// or error to stdout and returns the exit code.
func Main() int {
	funcs := skel.CNIFuncs{Add: add, Del: del, Check: check, Status: statusOf, GC: gc}
	versions := version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0")
	if e := skel.PluginMainFuncsWithError(funcs, versions, "Hawser CNI plugin"); e != nil {
		if err := e.Print(); err != nil {
			fmt.Fprintln(os.Stderr, "print error:", err)
		}
		return 1
	}
	return 0
}

func add(args *skel.CmdArgs) error {
	c, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	req, err := addRequest(args, c)
	if err != nil {
		return err
	}
	var resp *hawserv1.AddEndpointResponse
	err = call(c, addTimeout, func(ctx context.Context, node hawserv1.NodeClient) error {
		resp, err = node.AddEndpoint(ctx, req)
		return err
	})
	if err != nil {
		return cniError(err, "add pod "+req.Namespace+"/"+req.Name, c)
	}
	result, err := toResult(resp.GetEndpoint(), args)
	if err != nil {
		return types.NewError(types.ErrInternal, "understand the agent's answer", err.Error())
	}
	return types.PrintResult(result, c.CNIVersion)
}

func del(args *skel.CmdArgs) error {
	c, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	if err := deleteEndpoint(c, types.GCAttachment{ContainerID: args.ContainerID, IfName: args.IfName}); err != nil {
		return cniError(err, "delete container "+args.ContainerID, c)
	}
	return nil
}

// deleteEndpoint has the agent delete one; one that is not there is no error.
func deleteEndpoint(c *config, at types.GCAttachment) error {
	err := call(c, otherTimeout, func(ctx context.Context, node hawserv1.NodeClient) error {
		_, err := node.DeleteEndpoint(ctx, &hawserv1.DeleteEndpointRequest{ContainerId: at.ContainerID, Ifname: at.IfName})
		return err
	})
	if status.Code(err) == codes.NotFound {
		return nil
	}
	return err
}

// listEndpoints are all endpoints of the node.
func listEndpoints(c *config) (all []*hawserv1.Endpoint, err error) {
	err = call(c, otherTimeout, func(ctx context.Context, node hawserv1.NodeClient) error {
		r, err := node.ListEndpoints(ctx, &hawserv1.ListEndpointsRequest{})
		all = r.GetEndpoints()
		return err
	})
	return all, err
}

func check(args *skel.CmdArgs) error {
	c, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	all, err := listEndpoints(c)
	if err != nil {
		return cniError(err, "check container "+args.ContainerID, c)
	}
	for _, e := range all {
		if e.GetContainerId() != args.ContainerID || e.GetIfname() != args.IfName {
			continue
		}
		if e.GetState() != "ready" {
			return types.NewError(types.ErrTryAgainLater, "check container "+args.ContainerID, "its endpoint is "+e.GetState())
		}
		if err := nsthread.InNetns(args.Netns, func() error { return hasDevice(args.IfName, e.GetMac()) }); err != nil {
			return types.NewError(types.ErrInternal, "check container "+args.ContainerID, err.Error())
		}
		return nil
	}
	return types.NewError(types.ErrUnknownContainer, "check container "+args.ContainerID, "the agent has no endpoint for it")
}

// hasDevice looks for the pod's end of its pair in the calling thread's namespace.
func hasDevice(name, mac string) error {
	dev, err := net.InterfaceByName(name)
	if err != nil {
		return fmt.Errorf("look for %s in the pod: %w", name, err)
	}
	if has := dev.HardwareAddr.String(); has != mac {
		return fmt.Errorf("%s in the pod is another device: its address is %q, not %q", name, has, mac)
	}
	return nil
}

// statusOf answers whether the agent takes pods. That no address is left is told
// by ADD alone: Kubernetes takes a node whose STATUS fails for broken and evicts
// its pods, and a full node is not.
func statusOf(args *skel.CmdArgs) error {
	c, err := parseConfig(args.StdinData)
	if err != nil {
		return err
	}
	var report *hawserv1.NodeStatusReport
	err = call(c, otherTimeout, func(ctx context.Context, node hawserv1.NodeClient) error {
		report, err = node.Status(ctx, &hawserv1.StatusRequest{})
		return err
	})
	if err != nil {
		return types.NewError(types.ErrPluginNotAvailable, "ask the agent at "+c.Socket, status.Convert(err).Message())
	}
	if why := report.GetNotReady(); why != "" {
		return types.NewError(types.ErrPluginNotAvailable, "the agent at "+c.Socket+" takes no pods yet", why)
	}
	return nil
}

// call runs fn against the agent with a deadline.
func call(c *config, timeout time.Duration, fn func(context.Context, hawserv1.NodeClient) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+c.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	return fn(ctx, hawserv1.NewNodeClient(conn))
}

// cniError gives the agent's error a code of the CNI specification, so that the
// runtime knows whether to repeat.
func cniError(err error, what string, c *config) error {
	s := status.Convert(err)
	switch s.Code() {
	case codes.Unavailable, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Aborted:
		return types.NewError(types.ErrTryAgainLater, what, fmt.Sprintf("%s (agent at %s)", s.Message(), c.Socket))
	case codes.InvalidArgument:
		return types.NewError(types.ErrInvalidNetworkConfig, what, s.Message())
	case codes.NotFound:
		return types.NewError(types.ErrUnknownContainer, what, s.Message())
	default:
		return types.NewError(types.ErrInternal, what, s.Message())
	}
}

// toResult is the endpoint as the specification wants it: the host's and the
// pod's interface, the addresses on the pod's, its default routes.
func toResult(e *hawserv1.Endpoint, args *skel.CmdArgs) (*current.Result, error) {
	if e == nil || len(e.GetAddresses()) == 0 {
		return nil, fmt.Errorf("the endpoint has no address")
	}
	r := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{
			{Name: e.GetHostDevice(), Mtu: int(e.GetMtu())},
			{Name: args.IfName, Mac: e.GetMac(), Mtu: int(e.GetMtu()), Sandbox: args.Netns},
		},
	}
	const podInterface = 1
	for _, text := range e.GetAddresses() {
		addr, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("address: %w", err)
		}
		ip := &current.IPConfig{
			Interface: current.Int(podInterface),
			Address:   net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())},
		}
		route := &types.Route{Dst: net.IPNet{IP: make(net.IP, addr.BitLen()/8), Mask: net.CIDRMask(0, addr.BitLen())}, MTU: int(e.GetMtu())}
		for _, gateway := range []string{e.GetGateway(), e.GetGateway6()} {
			if gw, err := netip.ParseAddr(gateway); err == nil && gw.Is4() == addr.Is4() {
				ip.Gateway, route.GW = gw.AsSlice(), gw.AsSlice()
			}
		}
		r.IPs = append(r.IPs, ip)
		r.Routes = append(r.Routes, route)
	}
	return r, nil
}
