// SPDX-License-Identifier: Apache-2.0

package policy

import "hash/fnv"

// keptOrigins is how many texts of removed rules are kept, for events that were
// on their way when their rule went.
const keptOrigins = 4096

// origins numbers the parts of rules. The number is a hash of the text, so that
// it is the same after a restart and on every node, except where two collide.
type origins struct {
	texts   map[uint32]string
	numbers map[string]uint32
	users   map[uint32]int
	retired []uint32 // in order of retirement; may have come back to use
}

func newOrigins() *origins {
	return &origins{texts: map[uint32]string{}, numbers: map[string]uint32{}, users: map[uint32]int{}}
}

func (o *origins) acquire(text string) uint32 {
	n, ok := o.numbers[text]
	if !ok {
		h := fnv.New32a()
		h.Write([]byte(text))
		for n = h.Sum32(); n == 0 || o.texts[n] != ""; n++ {
		}
		o.texts[n], o.numbers[text] = text, n
	}
	o.users[n]++
	return n
}

func (o *origins) release(n uint32) {
	if o.users[n]--; o.users[n] > 0 {
		return
	}
	delete(o.users, n)
	o.retired = append(o.retired, n)
	if len(o.retired) > keptOrigins {
		oldest := o.retired[0]
		o.retired = o.retired[1:]
		if o.users[oldest] == 0 {
			delete(o.numbers, o.texts[oldest])
			delete(o.texts, oldest)
		}
	}
}

func (o *origins) text(n uint32) string { return o.texts[n] }
