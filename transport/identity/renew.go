package identity

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
)

// On an agent

// Due says whether this process's credential should be renewed: two thirds of
// its life are over, or the servers trust other authorities than it does. trust
// is what a server's Trust returns; 0 is not known. A source that is not a
// credential file never asks.
func (s *Source) Due(trust uint64) bool {
	m := s.files.get()
	if s.cfg.KeyFile == "" || m.credential == nil {
		return false
	}
	leaf := m.credential.chain[0]
	return trust != 0 && trust != m.trust.hash ||
		s.cfg.Now().After(leaf.NotAfter.Add(-leaf.NotAfter.Sub(leaf.NotBefore)/3))
}

// Request makes a new key and a certificate request (PKCS #10, DER) for it,
// which a server answers with what Accept takes.
func (s *Source) Request() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("identity: certificate request: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = key
	return der, nil
}

// Accept takes a server's answer to the last Request: it replaces the credential
// file, and new connections use it.
func (s *Source) Accept(data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.files.get()
	if s.pending == nil || m.credential == nil {
		return errors.New("identity: a renewed credential arrives that was not asked for")
	}
	_, c, err := Parse(data)
	if err != nil {
		return fmt.Errorf("identity: renewed credential: %w", err)
	}
	switch have := m.credential.id; {
	case c == nil || c.key != nil:
		return errors.New("identity: what arrives is not a renewed credential")
	case c.id.Domain != have.Domain || c.id.Role != have.Role || c.id.Name != have.Name:
		return fmt.Errorf("identity: the renewed credential is for %v, this is %v", c.id, have)
	case !matches(c.chain[0], s.pending):
		return errors.New("identity: the renewed credential is for another key than the one that was asked for")
	}
	if _, refused := newTrust(c.id.Domain, c.anchors).verify(c.chain, s.cfg.Now()); refused != nil {
		return fmt.Errorf("identity: renewed credential: %w", refused)
	}
	c.key = s.pending
	file, err := c.Encode()
	if err != nil {
		return err
	}
	if err := Replace(s.cfg.KeyFile, file); err != nil {
		return fmt.Errorf("identity: the renewed credential cannot be stored: %w", err)
	}
	s.pending = nil
	return s.files.again()
}

// On a server

// Trust stands for the authorities that this source trusts, if it can renew
// credentials; otherwise it is 0.
func (s *Source) Trust() uint64 {
	m := s.files.get()
	if m.bundle == nil {
		return 0
	}
	return m.trust.hash
}

// Agent returns the name and labels of the agent at the other end of a
// connection. An error refuses it: it is no agent, its certificate has ended
// while the connection was up, or was revoked.
func (s *Source) Agent(state tls.ConnectionState) (name string, labels map[string]string, err error) {
	id, err := s.Peer(state)
	if err != nil {
		return "", nil, err
	}
	if id.Role != RoleAgent {
		return "", nil, refuse(WrongRole, "it is for %v; taken here are agents", id)
	}
	if leaf, now := state.PeerCertificates[0], s.cfg.Now(); now.After(leaf.NotAfter) {
		return "", nil, validity([]*x509.Certificate{leaf}, now)
	}
	return id.Name, id.Labels, nil
}

// Renew answers the certificate request of the agent at the other end of a
// connection: the new credential is for the same name and labels as the one
// that it has shown, whatever the request says.
func (s *Source) Renew(state tls.ConnectionState, request []byte) ([]byte, error) {
	if _, _, err := s.Agent(state); err != nil {
		return nil, err
	}
	b := s.files.get().bundle
	if b == nil {
		return nil, errors.New("identity: this server does not hold the cluster's key, so it cannot renew: issue a new credential where the key is")
	}
	id, err := Of(state.PeerCertificates[0])
	if err != nil {
		return nil, err
	}
	if len(request) > 16<<10 {
		return nil, fmt.Errorf("identity: a certificate request of %d bytes", len(request))
	}
	r, err := x509.ParseCertificateRequest(request)
	if err == nil {
		err = r.CheckSignature()
	}
	if err != nil {
		return nil, fmt.Errorf("identity: certificate request: %w", err)
	}
	switch key := r.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
			return nil, fmt.Errorf("identity: certificate request: a key on curve %s; P-256 and P-384 are taken", key.Params().Name)
		}
	case ed25519.PublicKey:
	default:
		return nil, fmt.Errorf("identity: certificate request: a key of type %T; ECDSA and Ed25519 are taken", key)
	}
	c, err := b.certify(id, r.PublicKey, nil, s.cfg.AgentLifetime, s.cfg.Now())
	if err != nil {
		return nil, err
	}
	return c.Encode()
}
