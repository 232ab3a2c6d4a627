package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"time"
)

// TLSConfig says how a TLS handshake is made, and what it must show.
type TLSConfig struct {
	// ServerName is sent (SNI) and must be in the certificate. By default it is
	// the host that is asked.
	ServerName string
	// SkipVerify takes any certificate.
	SkipVerify bool
	// Roots are the authorities that are trusted; nil: this host's.
	Roots *x509.CertPool
	// Certificates are shown to a server that asks for one.
	Certificates []tls.Certificate
	// WarnBefore is how long before its end a certificate gets a warning.
	// Default 14 days; negative: never.
	WarnBefore time.Duration
	// protocols are offered (ALPN).
	protocols []string
}

func (c TLSConfig) handshake(ctx context.Context, conn net.Conn, name string) (*tls.Conn, error) {
	if c.ServerName != "" {
		name = c.ServerName
	}
	secure := tls.Client(conn, &tls.Config{
		ServerName: name, InsecureSkipVerify: c.SkipVerify, //nolint:gosec // the operator's choice, by name
		RootCAs: c.Roots, Certificates: c.Certificates, NextProtos: c.protocols,
	})
	return secure, secure.HandshakeContext(ctx)
}

// warning is about a certificate that ends soon.
func (c TLSConfig) warning(conn *tls.Conn) string {
	before := c.WarnBefore
	if before == 0 {
		before = 14 * 24 * time.Hour
	}
	certs := conn.ConnectionState().PeerCertificates
	if before < 0 || len(certs) == 0 {
		return ""
	}
	end := certs[0].NotAfter
	left := time.Until(end)
	switch {
	case left > before:
		return ""
	case left < 0:
		return fmt.Sprintf("the certificate ended on %s", end.UTC().Format(time.DateOnly))
	default:
		return fmt.Sprintf("the certificate ends on %s, in %d days", end.UTC().Format(time.DateOnly), int(left.Hours()/24))
	}
}
