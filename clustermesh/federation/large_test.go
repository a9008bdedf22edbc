// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"fmt"
	"testing"

	federationv1 "github.com/hawser-mesh/hawser/api/federation/v1"
	keyspacev1 "github.com/hawser-mesh/hawser/api/keyspace/v1"
	"github.com/hawser-mesh/hawser/kvstore"
)

// TestRecordsOfLongListsAreRefused: a peer sends the longest lists that fit a
// record, again and again. They are refused for their size, and what follows them
// is taken; nobody else waits.
func TestRecordsOfLongListsAreRefused(t *testing.T) {
	hub := newCluster(t, 1, small(8))
	undisturbed := bystander(t, hub)
	p := hub.admit(2, 8)
	p.connect()
	p.first()
	pods, _ := rangesOf(2)
	node := &keyspacev1.Node{Name: "n1", Cluster: p.name, TunnelAddress: "172.16.2.1", PodCidrs: []string{pods.String()}}
	for i := range 35_000 {
		node.PodCidrs = append(node.PodCidrs, fmt.Sprintf("a:%x::/32", i+1))
		node.Addresses = append(node.Addresses, &keyspacev1.NodeAddress{Ip: fmt.Sprintf("b:%x::1", i+1)})
	}
	cluster := describeSmall(p.name, 2, 8)
	for i := range 45_000 {
		cluster.ServiceCidrs = append(cluster.ServiceCidrs, fmt.Sprintf("192.168.%d.%d/32", i/256, i%256))
	}
	const times = 4
	var list []*federationv1.Change
	for i := range times {
		node.Name = fmt.Sprintf("n%d", i)
		list = append(list,
			p.record(kvstore.NewKey(kvstore.State, p.name, kvstore.KindNode, node.Name), node),
			p.record(kvstore.NewKey(kvstore.State, p.name, kvstore.KindCluster), cluster))
	}
	for _, c := range list {
		if n := len(c.GetValue()); n > kvstore.MaxRecord || n < kvstore.MaxRecord*2/3 {
			t.Fatalf("%s has %d bytes: not what is tested here", c.GetKey(), n)
		}
	}
	p.batch(20, false, append(list, p.ip(2))...)
	eventually(t, "what follows is taken", func() bool { return len(p.seen()) == 2 })
	if n := p.status().GetRefused()[kvstore.ReasonSize]; n != times+1 { // of one key twice in a batch the later counts
		t.Errorf("%d records are refused for their size, want %d: %v", n, times+1, p.status().GetRefused())
	}
	undisturbed()
}

// ending is a context that has ended for whoever asks it, and wakes nobody.
type ending struct{ context.Context }

func (ending) Err() error { return context.Canceled }

// Whoever ends a stream does not wait until all of a batch is judged.
func TestJudgingEndsInsideABatch(t *testing.T) {
	im, _ := waiting(t, &txnLog{})
	var err error
	if im.codec, err = newCodec(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(im.codec.close)
	packed, err := im.codec.pack([]*federationv1.Change{{Key: "novelties/1"}})
	if err != nil {
		t.Fatal(err)
	}
	im.in <- inbound{batch: &federationv1.Batch{ChangesZstd: packed, Count: 1}}
	ended := make(chan error, 1)
	go func() { ended <- im.judgeAll(ending{t.Context()}) }()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-im.next:
		t.Error("the batch was judged to its end")
	}
}
