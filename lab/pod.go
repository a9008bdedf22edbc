// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sync/errgroup"

	"github.com/hawser-mesh/hawser/lab/netns"
)

// AddPod makes a pod in a running lab: a namespace, the CNI plugin's ADD, and
// its process. On an error nothing of it stays. It holds the lab's lock until it
// returns.
func AddPod(ctx context.Context, name, cluster string, spec PodSpec) (Pod, error) {
	n := names{name}
	unlock, err := lockLab(withTimeout(ctx, lockWait), n)
	if err != nil {
		return Pod{}, err
	}
	defer unlock()
	l, err := Open(name)
	if err != nil {
		return Pod{}, err
	}
	c, err := findCluster(l.state.Clusters, cluster)
	if err != nil {
		return Pod{}, err
	}
	spec = spec.withDefaults(c.ClusterSpec)
	if err := c.checkPod(spec); err != nil {
		return Pod{}, err
	}
	if _, ok := l.pod(cluster, spec.Name); ok {
		return Pod{}, fmt.Errorf("pod %s/%s: the name is taken", cluster, spec.Name)
	}
	b := &builder{Lab: l}
	p, err := b.addPod(ctx, l.newPod(c, spec))
	if err != nil {
		return Pod{}, errors.Join(err, l.undoPod(context.WithoutCancel(ctx), p))
	}
	return p, nil
}

// undoPod takes away what there is of a pod that could not be added. The
// plugin's DEL is a courtesy: the agent may be what failed, and forgets the pod
// when it finds its device gone.
func (l *Lab) undoPod(ctx context.Context, p Pod) error {
	_ = killCgroup(withTimeout(ctx, killWait), p.Place.Cgroup) // else its removal says so
	_ = l.cniDel(withTimeout(ctx, leaveFor), p)
	if err := errors.Join(p.remove(), l.forget(p)); err != nil {
		return fmt.Errorf("undo it: %w", err)
	}
	return nil
}

// remove takes away the pod's namespace, cgroup and files; nothing may run in
// it any more.
func (p Pod) remove() error {
	err := netns.Delete(p.Place.Netns)
	_, cerr := removeCgroup(p.Place.Cgroup)
	return errors.Join(err, cerr,
		ignore(os.Remove(p.Place.Hosts), os.ErrNotExist), ignore(os.Remove(p.Place.Resolv), os.ErrNotExist))
}

// forget takes the pod out of the record.
func (l *Lab) forget(p Pod) error {
	return l.update(func(s *State) {
		s.Pods = slices.DeleteFunc(s.Pods, func(o Pod) bool { return o.ContainerID == p.ContainerID })
		s.Processes = slices.DeleteFunc(s.Processes, func(o Process) bool { return o.Name == p.process() })
	})
}

// DeletePod removes a pod as a container runtime would: process, the plugin's
// DEL, namespace. It holds the lab's lock until it returns.
func DeletePod(ctx context.Context, name, cluster, pod string) error {
	n := names{name}
	unlock, err := lockLab(withTimeout(ctx, lockWait), n)
	if err != nil {
		return err
	}
	defer unlock()
	l, err := Open(name)
	if err != nil {
		return err
	}
	p, ok := l.pod(cluster, pod)
	if !ok {
		return l.noSuchPod(cluster, pod)
	}
	err = errors.Join(
		killCgroup(withTimeout(ctx, killWait), p.Place.Cgroup),
		l.cniDel(ctx, p),
		p.remove(),
	)
	if err != nil {
		return fmt.Errorf("delete pod %s/%s: %w", cluster, pod, err)
	}
	return l.forget(p)
}

func (l *Lab) pod(cluster, name string) (Pod, bool) {
	for _, p := range l.Pods() {
		if p.Cluster == cluster && p.Name == name {
			return p, true
		}
	}
	return Pod{}, false
}

// process is the name of the pod's process. Pods of two clusters never share a
// node.
func (p Pod) process() string { return "pod-" + p.Node + "-" + p.Name }

func (l *Lab) newPod(c Cluster, s PodSpec) Pod {
	id := l.ns(s.Node + "-" + s.Name)
	sum := sha256.Sum256([]byte(id + l.state.Started.String()))
	return Pod{
		PodSpec: s, Cluster: c.Name, ContainerID: hex.EncodeToString(sum[:16]),
		Place: place{
			Netns:  l.netns(s.Node + "-" + s.Name),
			Cgroup: filepath.Join(l.state.CgroupRoot, s.Node, s.Name),
			Hosts:  l.dir("names", s.Node+"-"+s.Name+".hosts"),
			Resolv: l.dir("names", s.Node+"-"+s.Name+".resolv"),
			UTS:    s.Name,
		},
	}
}

func specPods(clusters []Cluster) []func(*Lab) Pod {
	var out []func(*Lab) Pod
	for _, c := range clusters {
		for _, p := range c.Pods {
			out = append(out, func(l *Lab) Pod { return l.newPod(c, p) })
		}
	}
	return out
}

func (b *builder) addPods(ctx context.Context, pods []func(*Lab) Pod) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, pod := range pods {
		g.Go(func() error {
			_, err := b.addPod(ctx, pod(b.Lab))
			return err
		})
	}
	return g.Wait()
}

func (b *builder) addPod(ctx context.Context, p Pod) (Pod, error) {
	fail := func(err error) (Pod, error) {
		return p, fmt.Errorf("add pod %s/%s on %s: %w", p.Cluster, p.Name, p.Node, err)
	}
	b.trap("pod " + p.Name)
	if err := b.update(func(s *State) { s.Pods = append(s.Pods, p) }); err != nil {
		return fail(err)
	}
	if err := makeCgroup(p.Place.Cgroup); err != nil {
		return fail(err)
	}
	if err := netns.Create(p.Place.Netns); err != nil {
		return fail(err)
	}
	b.trap("cni add " + p.Name)
	addrs, err := b.cniAdd(ctx, p)
	if err != nil {
		return fail(err)
	}
	p.Addresses = addrs
	err = b.update(func(s *State) {
		i := slices.IndexFunc(s.Pods, func(o Pod) bool { return o.ContainerID == p.ContainerID })
		s.Pods[i] = p
	})
	if err != nil {
		return fail(err)
	}
	if err := b.writeNames(p); err != nil {
		return fail(err)
	}
	b.trap("process of pod " + p.Name)
	if _, err := b.start(b.podProcess(p)); err != nil {
		return fail(err)
	}
	return p, nil
}

func (l *Lab) podProcess(p Pod) Process {
	argv := p.Command
	if len(argv) == 0 {
		argv = []string{l.state.Binaries.Hawser, "lab", "workload", "pause"}
	}
	return Process{Name: p.process(), Place: p.Place, Argv: argv, Log: l.log(p.process())}
}

// runtime is libcni with the lab's plugin and nothing of the host's.
func (l *Lab) runtime(p Pod) (*libcni.CNIConfig, *libcni.NetworkConfigList, *libcni.RuntimeConf, error) {
	_, node, ok := findNode(l.state.Clusters, p.Node)
	if !ok {
		return nil, nil, nil, fmt.Errorf("no node %q", p.Node)
	}
	ports, err := cniPorts(p.Ports)
	if err != nil {
		return nil, nil, nil, err
	}
	plugin := map[string]any{
		"type": filepath.Base(l.state.Binaries.CNI), "socket": node.Socket,
		"args": map[string]any{"cni": map[string]any{
			"labels": cniLabels(p.Labels), "namespaceLabels": cniLabels(p.NamespaceLabels), "ports": ports,
		}},
	}
	raw, err := json.Marshal(map[string]any{"cniVersion": "1.1.0", "name": "hawser", "plugins": []any{plugin}})
	if err != nil {
		return nil, nil, nil, fmt.Errorf("network configuration: %w", err)
	}
	conf, err := libcni.NetworkConfFromBytes(raw)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("network configuration: %w", err)
	}
	path := []string{filepath.Dir(l.state.Binaries.CNI)}
	cni := libcni.NewCNIConfigWithCacheDir(path, l.dir("cni"), &pluginExec{cgroup: l.state.CgroupRoot})
	return cni, conf, &libcni.RuntimeConf{
		ContainerID: p.ContainerID, NetNS: p.Place.Netns, IfName: "eth0",
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", p.Namespace}, {"K8S_POD_NAME", p.Name}},
	}, nil
}

// cniLabel is a label in the plugin's configuration.
type cniLabel struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

func cniLabels(m map[string]string) []cniLabel {
	out := []cniLabel{}
	for _, k := range sortedKeys(m) {
		out = append(out, cniLabel{k, m[k]})
	}
	return out
}

// cniPort is a named port in the plugin's configuration.
type cniPort struct {
	Name     string `json:"name"`
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
}

// cniPorts reads PodSpec.Ports. What names and protocols there are is the agent's.
func cniPorts(texts []string) ([]cniPort, error) {
	var out []cniPort
	for _, text := range texts {
		name, rest, _ := strings.Cut(text, "=")
		number, protocol, _ := strings.Cut(rest, "/")
		port, err := strconv.ParseUint(number, 10, 16)
		if err != nil || name == "" || port == 0 {
			return nil, fmt.Errorf("port %q: want NAME=PORT/PROTOCOL, as in http=8080/tcp", text)
		}
		out = append(out, cniPort{name, uint16(port), protocol})
	}
	return out, nil
}

func (l *Lab) cniAdd(ctx context.Context, p Pod) ([]string, error) {
	cni, conf, rt, err := l.runtime(p)
	if err != nil {
		return nil, err
	}
	res, err := cni.AddNetworkList(ctx, conf, rt)
	if err != nil {
		return nil, fmt.Errorf("CNI ADD: %w", err)
	}
	r, err := current.NewResultFromResult(res)
	if err != nil {
		return nil, fmt.Errorf("CNI ADD: %w", err)
	}
	var out []string
	for _, ip := range r.IPs {
		out = append(out, ip.Address.IP.String())
	}
	return out, nil
}

func (l *Lab) cniDel(ctx context.Context, p Pod) error {
	cni, conf, rt, err := l.runtime(p)
	if err != nil {
		return err
	}
	if err := cni.DelNetworkList(ctx, conf, rt); err != nil {
		return fmt.Errorf("CNI DEL: %w", err)
	}
	return nil
}

// pluginExec runs the plugin inside the lab's cgroup, so that it ends with the
// lab when whoever started it dies.
type pluginExec struct {
	version.PluginDecoder
	cgroup string
}

// ExecPlugin implements invoke.Exec.
func (e *pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = environ, bytes.NewReader(stdin), &stdout, &stderr
	self := place{Netns: "/proc/thread-self/ns/net", Cgroup: e.cgroup}
	err := startIn(self, cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err == nil {
		return stdout.Bytes(), nil
	}
	// The plugin says what is wrong on stdout.
	var said struct {
		Msg     string `json:"msg"`
		Details string `json:"details"`
	}
	if json.Unmarshal(stdout.Bytes(), &said) == nil && said.Msg != "" {
		return nil, fmt.Errorf("%s: %s", said.Msg, said.Details)
	}
	return nil, fmt.Errorf("%s: %w: %s", path, err, bytes.TrimSpace(stderr.Bytes()))
}

// FindInPath implements invoke.Exec.
func (e *pluginExec) FindInPath(plugin string, paths []string) (string, error) {
	return invoke.FindInPath(plugin, paths)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
