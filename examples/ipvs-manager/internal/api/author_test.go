package api

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/transport/identity"
)

func TestAuthor(t *testing.T) {
	bundle, err := identity.NewBundle("example", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	shown := func(id identity.ID) *tls.ConnectionState {
		credential, err := bundle.Issue(id, nil, time.Hour, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		data, err := credential.Encode()
		if err != nil {
			t.Fatal(err)
		}
		pair, err := tls.X509KeyPair(data, data)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{pair.Leaf}}
	}
	long := strings.Repeat("x", 253)
	for _, test := range []struct {
		state         *tls.ConnectionState
		address, want string
	}{
		{nil, "192.0.2.1:4711", "192.0.2.1"},
		{nil, "[2001:db8::1]:4711", "2001:db8::1"},
		{nil, "pipe", "pipe"},
		{&tls.ConnectionState{}, "192.0.2.1:4711", "192.0.2.1"},
		{&tls.ConnectionState{PeerCertificates: []*x509.Certificate{{}}}, "192.0.2.1:4711", "192.0.2.1"},
		{shown(identity.ID{Domain: "example", Role: identity.RoleOperator, Name: "alice"}), "192.0.2.1:4711", "operator alice"},
		{shown(identity.ID{Domain: "example", Role: identity.RoleServer, Name: long}), "192.0.2.1:4711", "server " + long[:240]},
	} {
		if got := author(&http.Request{TLS: test.state, RemoteAddr: test.address}); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}
