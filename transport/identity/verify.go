package identity

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
)

// trust says whose certificates are accepted. It never changes.
type trust struct {
	domain  string
	anchors []*x509.Certificate
	pool    *x509.CertPool
	hash    uint64 // of the anchors, in any order; never 0
}

func newTrust(domain string, anchors []*x509.Certificate) trust {
	t := trust{domain: domain, anchors: anchors, pool: x509.NewCertPool()}
	for _, cert := range anchors {
		t.pool.AddCert(cert)
		sum := sha256.Sum256(cert.Raw)
		t.hash += binary.BigEndian.Uint64(sum[:])
	}
	t.hash = max(t.hash, 1)
	return t
}

// verify checks a chain as the other end of a connection has shown it, leaf
// first, and returns who it is. Reasons that lie deeper come first: an expired
// certificate of a foreign authority is foreign.
func (t trust) verify(certs []*x509.Certificate, now time.Time) (ID, *Error) {
	if len(certs) == 0 {
		return ID{}, refuse(NoCertificate, "the other end showed none; it needs one of this cluster, %s", t.domain)
	}
	leaf := certs[0]
	if err := t.chain(certs, now); err != nil {
		return ID{}, err
	}
	id, err := Of(leaf)
	switch {
	case leaf.IsCA:
		return ID{}, refuse(WrongRole, "%q is the certificate of an authority, not of a server or agent", leaf.Subject)
	case err != nil:
		return ID{}, refuse(NoIdentity, "%v", err)
	case id.Domain != t.domain:
		return ID{}, refuse(WrongCluster, "it is for %v, this is cluster %s: is the address right?", id, t.domain)
	}
	return id, nil
}

func (t trust) chain(certs []*x509.Certificate, now time.Time) *Error {
	opts := x509.VerifyOptions{
		Roots: t.pool, Intermediates: x509.NewCertPool(), CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, // the role decides
	}
	for _, cert := range certs[1:] {
		opts.Intermediates.AddCert(cert)
	}
	leaf := certs[0]
	_, err := leaf.Verify(opts)
	if err == nil {
		return nil
	}
	// Is it the time alone? Then the chain holds at one when all of it is valid.
	opts.CurrentTime = leaf.NotBefore
	for _, cert := range certs[1:] {
		if cert.NotBefore.After(opts.CurrentTime) && cert.NotBefore.Before(leaf.NotAfter) {
			opts.CurrentTime = cert.NotBefore
		}
	}
	if _, timeless := leaf.Verify(opts); timeless != nil {
		var unknown x509.UnknownAuthorityError
		if errors.As(timeless, &unknown) {
			return refuse(WrongCA, "%q is signed by %q, which is not trusted here; trusted are %s", leaf.Subject, leaf.Issuer, t.names())
		}
		return refuse(WrongCA, "%q, signed by %q: %v", leaf.Subject, leaf.Issuer, timeless)
	}
	return validity(append(slices.Clone(certs), t.anchors...), now)
}

func (t trust) names() string {
	s := ""
	for i, cert := range t.anchors {
		if i > 0 {
			s += ", "
		}
		s += fmt.Sprintf("%q", cert.Subject)
	}
	return s
}

// validity says which of certs is not valid now, with both times. It returns a
// refusal in any case: the caller knows that time is the fault.
func validity(certs []*x509.Certificate, now time.Time) *Error {
	for _, cert := range certs {
		switch {
		case now.After(cert.NotAfter):
			return refuse(Expired, "%q was valid until %s, and this host's clock says %s: renew it, or set the clock if that is wrong",
				cert.Subject, stamp(cert.NotAfter), stamp(now))
		case now.Before(cert.NotBefore):
			return refuse(NotYetValid, "%q is valid from %s, and this host's clock says %s, %v earlier: the clocks of the two hosts differ; set them by NTP",
				cert.Subject, stamp(cert.NotBefore), stamp(now), cert.NotBefore.Sub(now).Round(time.Second))
		}
	}
	return refuse(Expired, "%q: its chain is not valid at %s by this host's clock", certs[0].Subject, stamp(now))
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }
