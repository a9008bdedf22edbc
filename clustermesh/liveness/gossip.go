// SPDX-License-Identifier: Apache-2.0

package liveness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
)

// GossipPort is where agents take part in gossip, on their node's address.
const GossipPort = 7946

// APIServerName is how an API server's replica is called in gossip; nodes are
// called by their names, which have no '/'.
func APIServerName(replica string) string { return "apiserver/" + replica }

// Times of gossip. A member that is killed is seen in about a second: a probe
// fails within probeEvery, and the suspicion lasts for three to six of them.
const (
	probeEvery   = 200 * time.Millisecond
	probeTimeout = 100 * time.Millisecond
	suspicion    = 3
	suspicionMax = 2 // times the shortest, while nobody confirms
	// patienceMax is how many times slower a member becomes that suspects itself
	// because most of its probes fail: with more, the last of a crowd that died at
	// once would be found late.
	patienceMax  = 3
	dialTimeout  = time.Second
	syncEvery    = 15 * time.Second
	reclaimAfter = 30 * time.Second // by another address
	leaveWithin  = 300 * time.Millisecond

	aloneEvery  = time.Second // between tries to find somebody
	rejoinEvery = 5 * time.Second
	rejoinMost  = 3 // of those that are missing, at a time
)

// GossipConfig is how a process takes part.
type GossipConfig struct {
	Cluster string // gossip of another one is refused
	Name    string
	Listen  netip.AddrPort // TCP and UDP; members are told this address
	// Seeds are where other members should be; it may block for a moment only.
	Seeds func() []netip.AddrPort
	// Changed is called after a member came or went; it must not block.
	Changed func()
	Log     *slog.Logger
}

// Gossip is this process's part in the gossip of its cluster (memberlist,
// encrypted). Its methods are for any goroutine.
type Gossip struct {
	cfg     GossipConfig
	refused atomic.Uint64
	wake    chan struct{}

	mu      sync.Mutex
	keys    [][]byte // the one to send with first
	ring    *memberlist.Keyring
	process map[string]Witness
	err     error
}

// NewGossip makes a Gossip that waits for keys.
func NewGossip(cfg GossipConfig) *Gossip {
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	return &Gossip{cfg: cfg, wake: make(chan struct{}, 1), process: map[string]Witness{}}
}

// SetKeys says which keys are good, the one to send with first. Messages under
// any other are refused from now on. Keys have 16, 24 or 32 bytes.
func (g *Gossip) SetKeys(keys [][]byte) error {
	if len(keys) == 0 {
		return errors.New("gossip: no keys")
	}
	for _, k := range keys {
		if err := memberlist.ValidateKey(k); err != nil {
			return fmt.Errorf("gossip key: %w", err)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.keys = keys
	select {
	case g.wake <- struct{}{}:
	default:
	}
	if g.ring == nil {
		return nil
	}
	var errs []error
	for _, k := range keys {
		errs = append(errs, g.ring.AddKey(k))
	}
	errs = append(errs, g.ring.UseKey(keys[0]))
	for _, k := range g.ring.GetKeys() {
		if !slices.ContainsFunc(keys, func(x []byte) bool { return bytes.Equal(x, k) }) {
			errs = append(errs, g.ring.RemoveKey(k))
		}
	}
	return errors.Join(errs...)
}

// Process is what gossip says of a member; Unknown of one that it never met.
func (g *Gossip) Process(name string) Witness {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.process[name]
}

// Members is Process of all that were ever met.
func (g *Gossip) Members() map[string]Witness {
	g.mu.Lock()
	defer g.mu.Unlock()
	return maps.Clone(g.process)
}

// Refused counts messages under a wrong key, in clear, or of another cluster.
func (g *Gossip) Refused() uint64 { return g.refused.Load() }

// Err is why this process takes no part at the moment; nil when it does or
// waits for keys.
func (g *Gossip) Err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// Run takes part until the context ends, from when there are keys. What prevents
// it is tried again: nothing else depends on gossip alone.
func (g *Gossip) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		list, err := g.start()
		g.mu.Lock()
		if g.err == nil && err != nil {
			g.cfg.Log.Error("no part in gossip; trying again", "error", err)
		}
		g.err = err
		g.mu.Unlock()
		if list != nil {
			g.join(ctx, list)
			_ = list.Leave(leaveWithin) // nobody may be there to hear it
			return list.Shutdown()
		}
		retry := time.NewTimer(rejoinEvery)
		select {
		case <-ctx.Done():
		case <-g.wake:
		case <-retry.C:
		}
		retry.Stop()
	}
	return nil
}

// start listens; without keys it does nothing.
func (g *Gossip) start() (*memberlist.Memberlist, error) {
	g.mu.Lock()
	if len(g.keys) == 0 {
		g.mu.Unlock()
		return nil, nil
	}
	ring, err := memberlist.NewKeyring(g.keys, g.keys[0])
	if err != nil {
		g.mu.Unlock()
		return nil, fmt.Errorf("gossip keys: %w", err)
	}
	g.ring = ring
	g.mu.Unlock()
	c := memberlist.DefaultLANConfig()
	c.Name, c.Label, c.Keyring = g.cfg.Name, "hawser/"+g.cfg.Cluster, ring
	c.BindAddr, c.BindPort = g.cfg.Listen.Addr().String(), int(g.cfg.Listen.Port())
	c.AdvertiseAddr, c.AdvertisePort = c.BindAddr, c.BindPort
	c.ProbeInterval, c.ProbeTimeout = probeEvery, probeTimeout
	c.SuspicionMult, c.SuspicionMaxTimeoutMult, c.AwarenessMaxMultiplier = suspicion, suspicionMax, patienceMax
	c.GossipInterval, c.PushPullInterval, c.TCPTimeout = probeEvery, syncEvery, dialTimeout
	c.DeadNodeReclaimTime = reclaimAfter
	c.EnableCompression = false // the messages are small
	c.Events = (*gossipEvents)(g)
	c.Logger = log.New((*gossipLog)(g), "", 0)
	list, err := memberlist.Create(c)
	if err != nil {
		return nil, fmt.Errorf("gossip on %s: %w", g.cfg.Listen, err)
	}
	return list, nil
}

// join looks for members until the context ends: at once while it is alone, now
// and then for those that are missing.
func (g *Gossip) join(ctx context.Context, list *memberlist.Memberlist) {
	wait := time.NewTimer(0)
	defer wait.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wait.C:
		}
		missing := g.missing(list)
		if len(missing) > 0 {
			_, err := list.Join(missing) // some may be down: that is what we are here for
			g.cfg.Log.Debug("look for members", "at", missing, "error", err)
		}
		next := rejoinEvery
		if list.NumMembers() < 2 {
			next = aloneEvery
		}
		wait.Reset(next)
	}
}

// missing are some seeds at which no member is known to live.
func (g *Gossip) missing(list *memberlist.Memberlist) []string {
	alive := map[string]bool{g.cfg.Listen.String(): true}
	for _, m := range list.Members() {
		alive[m.Address()] = true
	}
	var out []string
	for _, s := range g.cfg.Seeds() {
		if !alive[s.String()] {
			out = append(out, s.String())
		}
	}
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out[:min(len(out), rejoinMost)]
}

func (g *Gossip) note(name string, w Witness) {
	g.mu.Lock()
	g.process[name] = w
	g.mu.Unlock()
	g.cfg.Changed()
}

// gossipEvents implements memberlist.EventDelegate.
type gossipEvents Gossip

func (e *gossipEvents) NotifyJoin(n *memberlist.Node)  { (*Gossip)(e).note(n.Name, Up) }
func (e *gossipEvents) NotifyLeave(n *memberlist.Node) { (*Gossip)(e).note(n.Name, Down) }
func (e *gossipEvents) NotifyUpdate(*memberlist.Node)  {}

// gossipLog takes memberlist's log lines: only there does it say whom it
// refuses.
type gossipLog Gossip

func (l *gossipLog) Write(line []byte) (int, error) {
	g, text := (*Gossip)(l), strings.TrimSpace(string(line))
	if refusal(text) {
		const aloud = 64 // then each so many-th
		if n := g.refused.Add(1); n == 1 || n%aloud == 0 {
			g.cfg.Log.Warn("gossip refused", "what", text, "count", n)
		}
		return len(line), nil
	}
	g.cfg.Log.Debug(text)
	return len(line), nil
}

// refusal reports whether a log line of memberlist says that a message was not
// believed.
func refusal(text string) bool {
	for _, words := range []string{
		"Decrypt packet failed", "unacceptable label", "no installed keys could decrypt",
		"emote state is encrypted", "emote state is not encrypted", "ncryption is configured but remote state",
	} {
		if strings.Contains(text, words) {
			return true
		}
	}
	return false
}
