package identity

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"time"
)

// Credential is a certificate with its private key, and the authorities that
// its holder trusts. It never changes.
type Credential struct {
	id      ID
	key     crypto.Signer // nil in one that is on its way to its holder
	chain   []*x509.Certificate
	anchors []*x509.Certificate
}

// ID is whose credential it is.
func (c *Credential) ID() ID { return c.id }

// Expires is when the certificate ends.
func (c *Credential) Expires() time.Time { return c.chain[0].NotAfter }

// Serial is the certificate's serial number in lower-case hexadecimal, which
// revocations name.
func (c *Credential) Serial() string { return serialOf(c.chain[0]) }

func serialOf(cert *x509.Certificate) string { return cert.SerialNumber.Text(16) }

func (c *Credential) tls() *tls.Certificate {
	t := &tls.Certificate{PrivateKey: c.key, Leaf: c.chain[0]}
	for _, cert := range c.chain {
		t.Certificate = append(t.Certificate, cert.Raw)
	}
	return t
}
