// SPDX-License-Identifier: Apache-2.0

package invitation

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"strings"
	"time"

	"github.com/hawser-mesh/hawser/internal/pki"
	"github.com/hawser-mesh/hawser/kvstore"
)

const (
	tokenPrefix  = "hw1."
	secretBytes  = 16
	tokenIDBytes = 9
	maxTokenText = 8 << 10
	maxEndpoints = 16
	checksumSize = 4
)

// Token is what an inviting cluster hands to the cluster or node that shall join
// it. The text form is secret: whoever has it may join once.
type Token struct {
	Inviter   string    // cluster name
	Node      string    // the node that may join it; empty: the token is for a cluster
	Endpoints []string  // host:port of its federation listeners, or of its API for a node
	CAHash    [32]byte  // SHA-256 of its CA certificate's DER
	ID        string    // names the token in the inviter's store
	Secret    []byte    // at least 16 random bytes; never sent
	Expires   time.Time // full seconds
}

// tokenBody is the JSON inside a token; short names keep the text short.
type tokenBody struct {
	Inviter   string   `json:"c"`
	Node      string   `json:"n,omitempty"`
	Endpoints []string `json:"e"`
	CAHash    []byte   `json:"h"`
	ID        string   `json:"i"`
	Secret    []byte   `json:"s"`
	Expires   int64    `json:"x"` // Unix seconds
}

// New makes a token with a fresh id and secret; node is empty for a cluster's.
func New(inviter, node string, endpoints []string, caHash [32]byte, expires time.Time) (Token, error) {
	t := Token{Inviter: inviter, Node: node, Endpoints: endpoints, CAHash: caHash, Secret: make([]byte, secretBytes), Expires: expires.Truncate(time.Second)}
	id := make([]byte, tokenIDBytes)
	if _, err := rand.Read(t.Secret); err != nil {
		return Token{}, fmt.Errorf("draw token secret: %w", err)
	}
	if _, err := rand.Read(id); err != nil {
		return Token{}, fmt.Errorf("draw token id: %w", err)
	}
	t.ID = hex.EncodeToString(id)
	return t, t.validate()
}

// String is the text to hand over: hw1.<base64url>. It contains the secret.
func (t Token) String() string {
	body, err := json.Marshal(tokenBody{t.Inviter, t.Node, t.Endpoints, t.CAHash[:], t.ID, t.Secret, t.Expires.Unix()})
	if err != nil {
		panic(err) // strings, bytes and a number always marshal
	}
	body = binary.BigEndian.AppendUint32(body, crc32.ChecksumIEEE(body))
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(body)
}

// Parse reads a token's text, ignoring surrounding space. It says whether
// the text is no token, one of another version, cut off or altered; it does not
// look at the clock.
func Parse(text string) (Token, error) {
	text = strings.TrimSpace(text)
	rest, ok := strings.CutPrefix(text, tokenPrefix)
	switch {
	case text == "":
		return Token{}, errors.New("read token: it is empty")
	case !ok && strings.HasPrefix(text, "hw"):
		version, _, _ := strings.Cut(text, ".")
		return Token{}, fmt.Errorf("read token: version %.8q is not known here; this version reads hw1", version)
	case !ok:
		return Token{}, errors.New("read token: it does not start with hw1.; a token is printed by hawser mesh invite and hawser node invite")
	case len(text) > maxTokenText:
		return Token{}, fmt.Errorf("read token: longer than %d characters", maxTokenText)
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if err != nil || len(raw) <= checksumSize {
		return Token{}, errors.New("read token: it is damaged or cut off; copy the whole line")
	}
	body, sum := raw[:len(raw)-checksumSize], raw[len(raw)-checksumSize:]
	if binary.BigEndian.Uint32(sum) != crc32.ChecksumIEEE(body) {
		return Token{}, errors.New("read token: its checksum is wrong: it is cut off or was altered; copy the whole line")
	}
	var b tokenBody
	if err := json.Unmarshal(body, &b); err != nil {
		return Token{}, fmt.Errorf("read token: %w", err)
	}
	t := Token{Inviter: b.Inviter, Node: b.Node, Endpoints: b.Endpoints, ID: b.ID, Secret: b.Secret, Expires: time.Unix(b.Expires, 0)}
	if len(b.CAHash) != sha256.Size {
		return Token{}, errors.New("read token: CA hash is not 32 bytes")
	}
	copy(t.CAHash[:], b.CAHash)
	if err := t.validate(); err != nil {
		return Token{}, err
	}
	return t, nil
}

func (t Token) validate() error {
	var errs []error
	add := func(format string, a ...any) { errs = append(errs, fmt.Errorf("read token: "+format, a...)) }
	if err := kvstore.ValidateClusterName(t.Inviter); err != nil {
		add("%w", err)
	}
	if t.Node != "" {
		if err := (pki.ID{Cluster: "x", Role: pki.RoleAgent, Name: t.Node}).Validate(); err != nil {
			add("%w", err)
		}
	}
	if n := len(t.Endpoints); n == 0 || n > maxEndpoints {
		add("%d endpoints; 1 to %d are allowed", n, maxEndpoints)
	}
	for _, e := range t.Endpoints {
		if err := validateEndpoint(e); err != nil {
			add("%w", err)
		}
	}
	if len(t.Secret) < secretBytes {
		add("its secret has %d bits, fewer than %d", 8*len(t.Secret), 8*secretBytes)
	}
	if id, err := hex.DecodeString(t.ID); err != nil || len(id) != tokenIDBytes || t.ID != hex.EncodeToString(id) {
		add("its id is malformed")
	}
	return errors.Join(errs...)
}

func validateEndpoint(e string) error {
	host, port, err := net.SplitHostPort(e)
	if err != nil || host == "" || port == "" {
		return fmt.Errorf("endpoint %q: want host:port", e)
	}
	return nil
}
