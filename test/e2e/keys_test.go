// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	hawserv1 "github.com/hawser-mesh/hawser/api/hawser/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/clustermesh/invitation"
	"github.com/hawser-mesh/hawser/identity"
	"github.com/hawser-mesh/hawser/identity/collector"
	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/kvstore"
	"github.com/hawser-mesh/hawser/kvstore/etcd"
)

// toolEnv makes the test binary a tool: it runs inside the namespace of a
// cluster's API server, where its etcd can be reached.
const toolEnv = "HAWSER_E2E_TOOL"

// runTool is `list ENDPOINT TLS-DIR PREFIX`, `put ENDPOINT TLS-DIR KEY BASE64`,
// `delete ENDPOINT TLS-DIR KEY` or `exhaust ENDPOINT TLS-DIR CLUSTER FIRST LAST`.
func runTool(args []string) int {
	if err := tool(args); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func tool(args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	at := func(name string) string { return filepath.Join(args[2], name) }
	cfg, err := pki.Files{CA: at("ca.crt"), Cert: at("tls.crt"), Key: at("tls.key")}.ClientTLS(nil)
	if err != nil {
		return err
	}
	kv, err := etcd.NewClient(etcd.ClientConfig{Endpoints: []string{args[1]}, TLS: cfg})
	if err != nil {
		return err
	}
	defer kv.Close()
	switch args[0] {
	case "list":
		for after, more := "", true; more; {
			page, err := kv.List(ctx, args[3], after, 500, 0)
			if err != nil {
				return err
			}
			for _, e := range page.KVs {
				fmt.Println(e.Key, e.ModRevision)
				after = e.Key
			}
			more = page.More
		}
		return nil
	case "put":
		value, err := base64.StdEncoding.DecodeString(args[4])
		if err != nil {
			return err
		}
		_, err = kv.Txn(ctx, nil, []kvstore.Op{kvstore.Put(args[3], value)}, nil)
		return err
	case "delete":
		_, err = kv.Txn(ctx, nil, []kvstore.Op{kvstore.Delete(args[3])}, nil)
		return err
	}
	if args[0] == "exhaust" {
		return exhaust(ctx, kv, args[3], args[4], args[5])
	}
	return fmt.Errorf("no tool %q", args[0])
}

// exhaust retires all numbers of a range that nobody has, for longer than any
// test runs.
func exhaust(ctx context.Context, kv kvstore.Client, cluster, first, last string) error {
	s, err := collector.Look(ctx, kv, cluster)
	if err != nil {
		return err
	}
	lo, err1 := strconv.ParseUint(first, 10, 32)
	hi, err2 := strconv.ParseUint(last, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	var ops []kvstore.Op
	for n := uint32(lo); n <= uint32(hi); n++ {
		if _, has := s.IDs[identity.Number(n)]; !has {
			k := kvstore.NewKey(kvstore.Local, cluster, kvstore.KindRetired, kvstore.NumberName(n))
			v, err := kvstore.Encode(k, &keyspacev1.IdentityRef{Number: n, UpdatedAt: time.Now().Add(time.Hour).UnixNano()})
			if err != nil {
				return err
			}
			ops = append(ops, kvstore.Put(k.String(), v))
		}
	}
	for some := range slices.Chunk(ops, kvstore.MaxTxnOps) {
		if _, err := kv.Txn(ctx, nil, some, nil); err != nil {
			return err
		}
	}
	return nil
}

// cmdExhaust is `exhaust CLUSTER`: no number of the cluster is free any more.
func cmdExhaust(s *script, args []string) (string, error) {
	if len(args) != 1 || s.world.mesh[args[0]] == nil {
		return "", usage("exhaust CLUSTER")
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	r, err := s.world.mesh[args[0]].ClusterStatus(ctx, &hawserv1.ClusterStatusRequest{})
	if err != nil {
		return "", err
	}
	return s.etcd(args[0], "exhaust", args[0], fmt.Sprint(r.GetIdentityMin()), fmt.Sprint(r.GetIdentityMax()))
}

// etcd runs the tool beside a cluster's API server, as the cluster's admin.
func (s *script) etcd(cluster, what string, args ...string) (string, error) {
	c, err := s.cluster(cluster)
	if err != nil {
		return "", err
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*callTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, append([]string{what, c.EtcdEndpoint(), c.AdminTLS}, args...)...)
	cmd.Env = append(os.Environ(), toolEnv+"=1")
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := s.world.lab.Start(cluster+"/ctl", cmd); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("%s in etcd of %s: %w: %s", what, cluster, err, stderr.String())
	}
	return out.String(), nil
}

// cmdKeys is `keys CLUSTER PREFIX`: prints the keys below hawser/v1/PREFIX and
// their revisions. `keys CLUSTER changed FILE PREFIX` prints how many were made,
// changed or deleted since that was printed into FILE.
func cmdKeys(s *script, args []string) (string, error) {
	switch {
	case len(args) == 2:
		return s.etcd(args[0], "list", kvstore.Root+args[1])
	case len(args) == 4 && args[1] == "changed":
		now, err := s.etcd(args[0], "list", kvstore.Root+args[3])
		if err != nil {
			return "", err
		}
		was := map[string]bool{}
		for l := range strings.Lines(s.ts.ReadFile(args[2])) {
			was[l] = true
		}
		changed := map[string]bool{}
		for l := range strings.Lines(now) {
			if !was[l] {
				key, _, _ := strings.Cut(l, " ")
				changed[key] = true
			}
			delete(was, l)
		}
		for l := range was {
			key, _, _ := strings.Cut(l, " ")
			changed[key] = true
		}
		return fmt.Sprintln(len(changed)), nil
	}
	return "", usage("keys CLUSTER PREFIX | keys CLUSTER changed FILE PREFIX")
}

// cmdPublished is `published CLUSTER KEY`: a key that begins so is in the
// cluster's etcd.
func cmdPublished(s *script, args []string) (string, error) {
	if len(args) != 2 {
		return "", usage("published CLUSTER KEY")
	}
	out, err := s.etcd(args[0], "list", kvstore.Root+args[1])
	if err == nil && out == "" {
		err = no("etcd of %s has no %s", args[0], args[1])
	}
	return out, err
}

// cmdPublish writes a record into a cluster's etcd as that cluster's API server
// could, whatever it is worth:
//
//	publish CLUSTER [as=OWNER] identity NUMBER [LABEL…]
//	publish CLUSTER [as=OWNER] ip ADDRESS IDENTITY NODE TUNNEL-ADDRESS
//	publish CLUSTER delete KEY
func cmdPublish(s *script, args []string) (string, error) {
	const help = "publish CLUSTER [as=OWNER] identity NUMBER [LABEL…] | ip ADDRESS IDENTITY NODE TUNNEL | delete KEY"
	if len(args) < 3 {
		return "", usage(help)
	}
	cluster, owner := args[0], args[0]
	if as, ok := strings.CutPrefix(args[1], "as="); ok {
		owner, args = as, args[1:]
	}
	what, rest := args[1], args[2:]
	if what == "delete" {
		return s.etcd(cluster, "delete", kvstore.Root+rest[0])
	}
	k, rec, err := record(owner, what, rest)
	if err != nil {
		return "", fmt.Errorf("%w; %w", err, usage(help))
	}
	// Not kvstore.Encode, which would refuse it.
	value, err := proto.Marshal(rec)
	if err != nil {
		return "", err
	}
	_, err = s.etcd(cluster, "put", k.String(), base64.StdEncoding.EncodeToString(value))
	return k.String() + "\n", err
}

func record(owner, what string, args []string) (kvstore.Key, proto.Message, error) {
	now := time.Now().UnixNano()
	switch {
	case what == "identity":
		n, err := strconv.ParseUint(args[0], 10, 32)
		labels := args[1:]
		if len(labels) == 0 {
			labels = []string{"k8s:app=forged", "mesh:cluster=" + owner}
		}
		return kvstore.NewKey(kvstore.State, owner, kvstore.KindIdentity, kvstore.NumberName(uint32(n))),
			&keyspacev1.Identity{Number: uint32(n), Labels: labels, UpdatedAt: now}, err
	case what == "ip" && len(args) == 4:
		n, err := strconv.ParseUint(args[1], 10, 32)
		return kvstore.NewKey(kvstore.State, owner, kvstore.KindIP, args[0]),
			&keyspacev1.IPEntry{Prefix: args[0], Identity: uint32(n), Node: args[2], TunnelAddress: args[3], Namespace: "demo", Workload: "forged", UpdatedAt: now}, err
	}
	return kvstore.Key{}, nil, errors.New("no such record")
}

// cmdToken is `token guess TOKEN`: prints the token with another secret, as who
// knows its id but not its secret could make it; `token tamper TOKEN`: with one
// character changed.
func cmdToken(_ *script, args []string) (string, error) {
	if len(args) != 2 {
		return "", usage("token guess|tamper TOKEN")
	}
	if args[0] == "tamper" {
		b := []byte(args[1])
		i := len(b) / 2
		if b[i]++; b[i] == 'z'+1 || b[i] == 'Z'+1 || b[i] == '9'+1 {
			b[i] = 'A'
		}
		return string(b) + "\n", nil
	}
	t, err := invitation.Parse(args[1])
	if err != nil {
		return "", err
	}
	t.Secret = bytes.Repeat([]byte{7}, len(t.Secret))
	return t.String() + "\n", nil
}

// cmdExpired is `expired TOKEN`.
func cmdExpired(_ *script, args []string) (string, error) {
	if len(args) != 1 {
		return "", usage("expired TOKEN")
	}
	t, err := invitation.Parse(args[0])
	if err == nil && time.Now().Before(t.Expires) {
		err = no("it is valid until %s", t.Expires)
	}
	return "", err
}
