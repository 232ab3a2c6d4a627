package probe

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/ipvskit/ipvskit/healthcheck"
)

// What a probe costs this host, the server's share on the loopback included.
func BenchmarkProbe(b *testing.B) {
	s := serve(b, func(c net.Conn) { sayAndClose(okAnswer)(c) })
	tcp, err := NewTCP(TCPConfig{})
	if err != nil {
		b.Fatal(err)
	}
	full, err := NewTCP(TCPConfig{Full: true})
	if err != nil {
		b.Fatal(err)
	}
	http, err := NewHTTP(HTTPConfig{Path: "/"})
	if err != nil {
		b.Fatal(err)
	}
	for _, p := range []struct {
		name  string
		probe healthcheck.Probe
	}{{"tcp-half-open", tcp}, {"tcp-full", full}, {"http", http}} {
		b.Run(p.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				ctx, cancel := context.WithTimeout(b.Context(), time.Second)
				if res := p.probe.Probe(ctx, s.addr); !res.OK() {
					b.Fatal(res)
				}
				cancel()
			}
		})
	}
}
