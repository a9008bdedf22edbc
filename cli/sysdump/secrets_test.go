// SPDX-License-Identifier: Apache-2.0

package sysdump

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/hawser-mesh/hawser/clustermesh/invitation"
)

// Each form in which a secret may stand in a state, a listing or a log. The
// planted word is what must not be left.
func TestEveryFormOfSecretIsRemoved(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	p8 := string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	inJSON, err := json.Marshal(map[string]string{"file": p8})
	if err != nil {
		t.Fatal(err)
	}
	middle := base64.StdEncoding.EncodeToString(der)[20:60]
	gossip := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{0xa7}, 32))
	tok, err := invitation.New("east", "", []string{"h:1"}, [32]byte{1}, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.StdEncoding.EncodeToString
	for name, x := range map[string]struct{ text, secret string }{
		"PEM":                       {p8, middle},
		"PEM of another type":       {strings.ReplaceAll(p8, "PRIVATE", "EC PRIVATE"), middle},
		"PEM, encrypted":            {strings.ReplaceAll(p8, "PRIVATE", "ENCRYPTED PRIVATE"), middle},
		"PEM in JSON":               {string(inJSON), middle},
		"PEM, its end cut off":      {p8[:len(p8)-30], middle},
		"PEM, its beginning cut":    {p8[30:], middle},
		"PEM in base64":             {"client: " + b64([]byte(p8)), b64([]byte(p8))[40:80]},
		"DER in base64":             {`{"der": "` + b64(der) + `"}`, middle},
		"DER of an EC key":          {"x " + b64(ec), b64(ec)[20:60]},
		"token":                     {"level=INFO token=" + tok.String(), tok.String()[10:]},
		"token in a sentence":       {"join with " + tok.String() + " now", tok.String()[10:]},
		"token, gone astray":        {tok.String() + "\n", tok.String()[10:]},
		"JWT":                       {"sent eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJwbGFudGVkIn0.c2lnbmF0dXJl", "eyJzdWIi"},
		"gossip key":                {`{"keys": ["` + gossip + `"]}`, gossip[:20]},
		"gossip keys":               {"gossip_keys: [" + gossip + ", " + gossip + "]", gossip[:20]},
		"gossip key in a log":       {"added " + gossip + " to the ring", gossip[:20]},
		"short gossip key":          {"added " + b64(bytes.Repeat([]byte{9}, 16)), b64(bytes.Repeat([]byte{9}, 16))},
		"header":                    {"Authorization: Bearer planted-word-0", "planted-word-0"},
		"header, basic":             {"Authorization: Basic cGxhbnRlZDp3b3Jk", "cGxhbnRlZDp3b3Jk"},
		"header as a field":         {`{"authorization": "Bearer planted-word-0"}`, "planted-word-0"},
		"header as a list":          {`"Authorization":["Bearer planted-word-0"]`, "planted-word-0"},
		"proxy's header":            {"proxy-authorization: planted-word-0", "planted-word-0"},
		"bearer":                    {"curl -H 'bearer planted-word-0'", "planted-word-0"},
		"cookie":                    {"Set-Cookie: session=planted-word-0; Path=/", "planted-word-0"},
		"api key header":            {"X-Api-Key: planted-word-0", "planted-word-0"},
		"URL":                       {"dial postgres://app:planted-word-0@db:5432/x", "planted-word-0"},
		"URL without user":          {"redis://:planted-word-0@cache/0", "planted-word-0"},
		"URL parameter":             {"GET /x?a=1&access_token=planted-word-0&b=2", "planted-word-0"},
		"YAML":                      {"db:\n  password: planted-word-0\n", "planted-word-0"},
		"YAML, quoted":              {"password: 'planted word'\n", "planted word"},
		"YAML, a block":             {"a: 1\n  password: |\n    planted\n    word-0\n  b: 2\n", "word-0"},
		"YAML, a list":              {"tokens: [planted-word-0, planted-word-1]", "planted-word-1"},
		"JSON":                      {`{"dbPassword":"planted-word-0"}`, "planted-word-0"},
		"JSON, with blanks":         {`{"client_secret" : "planted word zero"}`, "word zero"},
		"JSON, with a quote":        {`{"secret":"plan\"ted"}`, "ted"},
		"JSON, on two lines":        {"{\"passphrase\":\n \"planted-word-0\"}", "planted-word-0"},
		"JSON in a JSON string":     {`{"msg":"{\"password\":\"planted-word-0\"}"}`, "planted-word-0"},
		"environment":               {"ETCD_PASSWORD=planted-word-0", "planted-word-0"},
		"environment, cloud":        {"export AWS_SECRET_ACCESS_KEY=planted/word+0", "planted/word+0"},
		"environment with =":        {"DB_PASSWORD=plan=ted=word", "ted=word"},
		"environment in a list":     {`["PGPASSWORD=planted-word-0","HOME=/"]`, "planted-word-0"},
		"flag":                      {"etcdctl --password planted-word-0 get x", "planted-word-0"},
		"flag with =":               {"etcdctl --password=planted-word-0 get x", "planted-word-0"},
		"log field":                 {`level=INFO psk="planted word" node=n1`, "planted word"},
		"kubeconfig":                {"client-key-data: cGxhbnRlZC13b3Jk", "cGxhbnRlZC13b3Jk"},
		"a number that is a secret": {"password: 84729105", "84729105"},
	} {
		if got := string(clean(rules(), []byte("before\n"+x.text+"\nafter\n"))); strings.Contains(got, x.secret) {
			t.Errorf("%s: %q is left:\n%s", name, x.secret, got)
		} else if !strings.HasPrefix(got, "before") && name != "PEM, its beginning cut" || !strings.Contains(got, "after") && name != "PEM, its end cut off" {
			t.Errorf("%s: more than the secret is gone:\n%s", name, got)
		}
	}
}

// What helps stays, and JSON stays JSON.
func TestWhatIsNoSecretStays(t *testing.T) {
	for _, text := range []string{
		"level=WARN msg=\"record refused\" peer=west key=hawser/v1/state/west/ips/10.2.0.1%2F32 error=\"range\"\n",
		`{"name": "echo", "keys": 120, "labels": ["k8s:app=echo"], "policyAudit": true}`,
		`{"tokens": 3, "hasPassword": false, "secret": null}`,
		"hawser_keyspace_refused_total{reason=\"grant\"} 3\n",
		"https://example.net:8443/a/b?x=1 10.2.0.0/16 via 172.30.1.11 dev eth0\n",
		"-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIQ\n-----END CERTIFICATE-----\n",
		"sha256 5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef\n",
		"tcx ingress: from_pod (id 12)\n",
	} {
		if got := string(clean(rules(), []byte(text))); got != text {
			t.Errorf("changed:\n%s\n%s", text, got)
		}
	}
	got := clean(rules(), []byte(`{"a": {"password": "x", "tokens": ["y"], "token": "z", "psk": 12345678, "n": 1}}`))
	if !bytes.Contains(got, []byte(`"n": 1`)) || bytes.Contains(got, []byte("12345678")) {
		t.Errorf("%s", got)
	}
}
