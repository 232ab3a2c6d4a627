package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"time"
)

const (
	authorityLifetime = 10 * 365 * 24 * time.Hour
	// backdate lets a certificate pass at once where clocks differ a little.
	backdate = 10 * time.Minute
	// maxAuthorities bounds a bundle; two are there while one replaces another.
	maxAuthorities = 8
)

// Bundle is the key of a cluster. It never changes: Rotate and Retire return
// another one.
type Bundle struct {
	domain      string
	authorities []authority // oldest first; the last signs
}

type authority struct {
	cert  *x509.Certificate // signed by itself
	key   *ecdsa.PrivateKey
	cross *x509.Certificate // the same key, signed by the one before; nil for the first
}

// NewBundle makes a key for a new cluster. An empty domain becomes a random one.
func NewBundle(domain string, now time.Time) (*Bundle, error) {
	if domain == "" {
		var b [4]byte
		_, _ = rand.Read(b[:]) // it never fails
		domain = "cluster-" + hex.EncodeToString(b[:])
	}
	if err := checkDomain(domain); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	a, err := newAuthority(domain, now)
	if err != nil {
		return nil, err
	}
	return &Bundle{domain: domain, authorities: []authority{a}}, nil
}

// Domain names the cluster in its certificates.
func (b *Bundle) Domain() string { return b.domain }

// Authorities are the trusted ones, oldest first; the last signs.
func (b *Bundle) Authorities() []*x509.Certificate {
	out := make([]*x509.Certificate, len(b.authorities))
	for i, a := range b.authorities {
		out[i] = a.cert
	}
	return out
}

// Rotate returns the bundle with a new authority, which signs from then on.
func (b *Bundle) Rotate(now time.Time) (*Bundle, error) {
	if len(b.authorities) >= maxAuthorities {
		return nil, fmt.Errorf("identity: the key has %d authorities, which is as many as there may be: retire the older ones first", len(b.authorities))
	}
	a, err := newAuthority(b.domain, now)
	if err != nil {
		return nil, err
	}
	signer := b.signer()
	template := authorityTemplate(a.cert.Subject, a.cert.URIs[0], now)
	template.NotAfter = signer.cert.NotAfter
	if a.cross, err = sign(template, signer.cert, a.key.Public(), signer.key); err != nil {
		return nil, err
	}
	return &Bundle{domain: b.domain, authorities: append(append([]authority(nil), b.authorities...), a)}, nil
}

// Retire returns the bundle with its newest authority alone. Certificates that
// the others signed are refused from then on.
func (b *Bundle) Retire() (*Bundle, error) {
	if len(b.authorities) == 1 {
		return nil, errors.New("identity: the key has one authority, there is no older one to retire: rotate first")
	}
	a := b.signer()
	a.cross = nil
	return &Bundle{domain: b.domain, authorities: []authority{a}}, nil
}

func (b *Bundle) signer() authority { return b.authorities[len(b.authorities)-1] }

func newAuthority(domain string, now time.Time) (authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return authority{}, err
	}
	serial := newSerial()
	name := fmt.Sprintf("%x", serial.Bytes()[:4])
	subject := pkix.Name{CommonName: "ipvskit " + domain + " CA " + name}
	template := authorityTemplate(subject, ID{Domain: domain, Role: roleCA, Name: name}.URI(), now)
	cert, err := sign(template, template, key.Public(), key)
	return authority{cert: cert, key: key}, err
}

func authorityTemplate(subject pkix.Name, uri *url.URL, now time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: newSerial(), Subject: subject, URIs: []*url.URL{uri},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(authorityLifetime),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

// newSerial is random and positive, of 16 bytes with the first bit clear and
// the second set, so that its length is always the same.
func newSerial() *big.Int {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails
	b[0] = b[0]&0x7f | 0x40
	return new(big.Int).SetBytes(b[:])
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("identity: sign a certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

// Issue makes a credential with a key of its own, valid from now for lifetime.
// hosts are DNS names and IP addresses, for browsers; an empty Domain of the ID
// becomes the bundle's.
func (b *Bundle) Issue(id ID, hosts []string, lifetime time.Duration, now time.Time) (*Credential, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	c, err := b.certify(id, key.Public(), hosts, lifetime, now)
	if err != nil {
		return nil, err
	}
	c.key = key
	return c, nil
}

// certify signs a certificate for a key whose private half is elsewhere.
func (b *Bundle) certify(id ID, public crypto.PublicKey, hosts []string, lifetime time.Duration, now time.Time) (*Credential, error) {
	if id.Domain == "" {
		id.Domain = b.domain
	}
	if id.Domain != b.domain {
		return nil, fmt.Errorf("identity: the key is that of %s, it signs nothing for %s", b.domain, id.Domain)
	}
	if id.Role == roleCA {
		return nil, errors.New("identity: role ca is not for certificates of this kind")
	}
	if err := id.Validate(); err != nil {
		return nil, fmt.Errorf("identity: %w", err)
	}
	if lifetime <= 0 {
		return nil, fmt.Errorf("identity: a lifetime of %v, it must be positive", lifetime)
	}
	signer := b.signer()
	template := &x509.Certificate{
		SerialNumber: newSerial(), Subject: pkix.Name{CommonName: id.Name[:min(len(id.Name), 64)]}, URIs: []*url.URL{id.URI()},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(lifetime),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if template.NotAfter.After(signer.cert.NotAfter) {
		template.NotAfter = signer.cert.NotAfter
	}
	if id.Role == RoleServer {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		for _, h := range hosts {
			if ip := net.ParseIP(h); ip != nil {
				template.IPAddresses = append(template.IPAddresses, ip)
			} else if h != "" {
				template.DNSNames = append(template.DNSNames, h)
			}
		}
	}
	leaf, err := sign(template, signer.cert, public, signer.key)
	if err != nil {
		return nil, err
	}
	c := &Credential{id: id, chain: []*x509.Certificate{leaf}, anchors: b.Authorities()}
	for i := len(b.authorities) - 1; i >= 0; i-- {
		if cross := b.authorities[i].cross; cross != nil {
			c.chain = append(c.chain, cross)
		}
	}
	return c, nil
}
