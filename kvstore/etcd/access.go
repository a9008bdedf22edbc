// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/etcd/api/v3/authpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/hawser-mesh/hawser/kvstore"
)

// rootUser is etcd's administrator; its role of the same name may do all.
const rootUser = "root"

// access is one line of the access table: what is below Prefix may be read, or
// read and written.
type access struct {
	Prefix string
	Write  bool
	Key    bool // Prefix is one key
}

// end is where the range of a line ends, as etcd writes it.
func (a access) end() string {
	if a.Key {
		return ""
	}
	return clientv3.GetPrefixRangeEnd(a.Prefix)
}

// accessTable is who may do what, by user. Reading is granted apart from
// writing, so an agent reads all of state/ but writes only its own cluster's
// kinds that agents own. In an etcd of its own a cluster's API server also
// writes the mirrors of its peers; in a shared one nobody writes another's.
func accessTable(cluster string, shared bool) map[string][]access {
	agent := []access{
		{Prefix: kvstore.SubtreePrefix(kvstore.State)},
		{Prefix: kvstore.Prefix(kvstore.Local, cluster)},
	}
	for _, dir := range []string{"nodes/", "vteps/", "ips/", "identities/", "slices/"} {
		agent = append(agent, access{Prefix: kvstore.Prefix(kvstore.State, cluster) + dir, Write: true})
	}
	for _, dir := range []string{"refs/", "slices/", "presence/", "status/"} {
		agent = append(agent, access{Prefix: kvstore.Prefix(kvstore.Local, cluster) + dir, Write: true})
	}
	all := []access{
		{Prefix: kvstore.Prefix(kvstore.Local, cluster), Write: true},
		{Prefix: kvstore.Prefix(kvstore.Private, cluster), Write: true},
	}
	if shared {
		all = append(all, access{Prefix: kvstore.SubtreePrefix(kvstore.State)}, access{Prefix: kvstore.Prefix(kvstore.State, cluster), Write: true})
	} else {
		all = append(all, access{Prefix: kvstore.SubtreePrefix(kvstore.State), Write: true})
	}
	return map[string][]access{
		cluster + "-agent":     agent,
		cluster + "-apiserver": all,
		cluster + "-admin":     all,
	}
}

// nodeTable is what an enrolled node may do in its cluster's own etcd: role is
// what all of them may, keys is what only the node of that name may write. The
// directories where a node's keys are not under its own name (ips, references)
// remain open to all of them.
func nodeTable(cluster, node string) (role, keys []access) {
	own := map[string]kvstore.Key{}
	for _, k := range []kvstore.Key{
		kvstore.NewKey(kvstore.State, cluster, kvstore.KindNode, node),
		kvstore.NewKey(kvstore.Local, cluster, kvstore.KindPresence, node),
		kvstore.NewKey(kvstore.Local, cluster, kvstore.KindStatus, node),
	} {
		own[kvstore.KindPrefix(k.Subtree, cluster, k.Kind)] = k
	}
	for _, a := range accessTable(cluster, false)[cluster+agentRole] {
		if k, ok := own[a.Prefix]; ok {
			keys = append(keys, access{Prefix: k.String(), Write: true, Key: true})
		} else {
			role = append(role, a)
		}
	}
	return role, keys
}

// Grant is one line of the access table for people.
type Grant struct {
	User   string `json:"user"` // and role; the common name of the certificate
	Prefix string `json:"prefix"`
	Write  bool   `json:"write"`
}

// Grants is the access table of a cluster: who may do what in an etcd of its
// own, or in one that it shares with other clusters.
func Grants(cluster string, shared bool) []Grant {
	var out []Grant
	for user, lines := range accessTable(cluster, shared) {
		for _, a := range lines {
			out = append(out, Grant{User: user, Prefix: a.Prefix, Write: a.Write})
		}
	}
	slices.SortFunc(out, func(a, b Grant) int { return cmp.Or(cmp.Compare(a.User, b.User), cmp.Compare(a.Prefix, b.Prefix)) })
	return out
}

// SetupAccess makes a cluster's users and roles in an etcd what Grants says and
// turns access control on. It needs root's rights (or that access control is
// off yet) and can be repeated; other clusters' users stay as they are.
func SetupAccess(ctx context.Context, c *Client, cluster string, shared bool) error {
	if err := kvstore.ValidateClusterName(cluster); err != nil {
		return err
	}
	if err := bootstrapAccess(ctx, c.etcd, accessTable(cluster, shared)); err != nil {
		return fmt.Errorf("set up access of %s to %s: %w", cluster, c.endpoint, c.mapError(err))
	}
	return nil
}

// bootstrapAccess makes users and roles what the table says and turns access
// control on. It can be repeated, also half-way through: a role that holds more
// than the table says loses it.
func bootstrapAccess(ctx context.Context, c *clientv3.Client, table map[string][]access) error {
	if err := ensureUser(ctx, c, rootUser); err != nil {
		return err
	}
	users := make([]string, 0, len(table))
	for u := range table {
		users = append(users, u)
	}
	slices.Sort(users)
	for _, u := range users {
		if err := ensureUser(ctx, c, u); err != nil {
			return err
		}
		if err := ensureGrants(ctx, c, u, table[u]); err != nil {
			return err
		}
	}
	st, err := c.AuthStatus(ctx)
	if err != nil {
		return fmt.Errorf("read etcd's access state: %w", err)
	}
	if st.Enabled {
		return nil
	}
	if _, err := c.AuthEnable(ctx); err != nil {
		return fmt.Errorf("enable etcd's access control: %w", err)
	}
	return nil
}

func ensureRole(ctx context.Context, c *clientv3.Client, name string) error {
	_, err := c.RoleAdd(ctx, name)
	if err != nil && !errors.Is(err, rpctypes.ErrRoleAlreadyExist) {
		return fmt.Errorf("add etcd role %s: %w", name, err)
	}
	return nil
}

// ensureUser makes a user without a password (only a certificate opens it) that
// holds exactly the roles given, by default that of its own name.
func ensureUser(ctx context.Context, c *clientv3.Client, name string, roles ...string) error {
	if len(roles) == 0 {
		roles = []string{name}
		if err := ensureRole(ctx, c, name); err != nil {
			return err
		}
	}
	_, err := c.UserAddWithOptions(ctx, name, "", &clientv3.UserAddOptions{NoPassword: true})
	if err != nil && !errors.Is(err, rpctypes.ErrUserAlreadyExist) {
		return fmt.Errorf("add etcd user %s: %w", name, err)
	}
	u, err := c.UserGet(ctx, name)
	if err != nil {
		return fmt.Errorf("read etcd user %s: %w", name, err)
	}
	for _, r := range u.Roles {
		if slices.Contains(roles, r) {
			continue
		}
		if _, err := c.UserRevokeRole(ctx, name, r); err != nil {
			return fmt.Errorf("revoke role %s from etcd user %s: %w", r, name, err)
		}
	}
	for _, r := range roles {
		if slices.Contains(u.Roles, r) {
			continue
		}
		if _, err := c.UserGrantRole(ctx, name, r); err != nil {
			return fmt.Errorf("grant role %s to etcd user %s: %w", r, name, err)
		}
	}
	return nil
}

type grantKey struct {
	key, end string
	perm     authpb.Permission_Type
}

func ensureGrants(ctx context.Context, c *clientv3.Client, role string, lines []access) error {
	want := make(map[grantKey]bool, len(lines))
	for _, a := range lines {
		perm := authpb.Permission_READ
		if a.Write {
			perm = authpb.Permission_READWRITE
		}
		want[grantKey{a.Prefix, a.end(), perm}] = true
	}
	have, err := c.RoleGet(ctx, role)
	if err != nil {
		return fmt.Errorf("read etcd role %s: %w", role, err)
	}
	for _, p := range have.Perm {
		k := grantKey{string(p.Key), string(p.RangeEnd), p.PermType}
		if want[k] {
			delete(want, k)
			continue
		}
		if _, err := c.RoleRevokePermission(ctx, role, k.key, k.end); err != nil {
			return fmt.Errorf("revoke %s from etcd role %s: %w", k.key, role, err)
		}
	}
	for k := range want {
		if _, err := c.RoleGrantPermission(ctx, role, k.key, k.end, clientv3.PermissionType(k.perm)); err != nil {
			return fmt.Errorf("grant %s to etcd role %s: %w", k.key, role, err)
		}
	}
	return nil
}
