package identity_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/ipvskit/ipvskit/transport/identity"
)

// A cluster's key signs a credential for an agent; each end makes its TLS
// configuration from its own file, and the server learns who has come.
func Example() {
	dir, err := os.MkdirTemp("", "identity")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	keep := func(name string, e interface{ Encode() ([]byte, error) }) string {
		data, err := e.Encode()
		if err != nil {
			panic(err)
		}
		path := filepath.Join(dir, name)
		if err := identity.Create(path, data); err != nil {
			panic(err)
		}
		return path
	}
	// Where the key is.
	bundle, err := identity.NewBundle("prod", time.Now())
	if err != nil {
		fmt.Println(err)
		return
	}
	lb1, err := bundle.Issue(identity.ID{Role: identity.RoleAgent, Name: "lb1", Labels: map[string]string{"zone": "a"}}, nil, 90*24*time.Hour, time.Now())
	if err != nil {
		fmt.Println(err)
		return
	}
	key, credential := keep("cluster.key", bundle), keep("lb1.key", lb1)

	// On a server, which mints its own certificate.
	server, err := identity.Open(identity.Config{KeyFile: key, Role: identity.RoleServer, Name: "node0"})
	if err != nil {
		fmt.Println(err)
		return
	}
	// On the director.
	agent, err := identity.Open(identity.Config{KeyFile: credential, Role: identity.RoleAgent})
	if err != nil {
		fmt.Println(err)
		return
	}

	a, b := net.Pipe()
	ready := make(chan struct{})
	go func() {
		defer close(ready)
		if err := tls.Client(a, agent.ClientTLS()).Handshake(); err != nil {
			fmt.Println(err)
		}
	}()
	conn := tls.Server(b, server.ServerTLS(identity.RoleAgent))
	if err := conn.Handshake(); err != nil {
		fmt.Println(err)
		return
	}
	<-ready
	id, err := server.Peer(conn.ConnectionState())
	fmt.Println(id, id.Labels, err)
	// Output: agent "lb1" of prod map[zone:a] <nil>
}
