package identity

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
)

// Config says where a Source has its certificates from: KeyFile alone, or
// CertFile, PrivateKeyFile and CAFile together.
type Config struct {
	// KeyFile is a cluster's key, from which a certificate is minted, or a
	// credential.
	KeyFile string

	// CertFile holds a certificate, followed by those between it and the
	// authority; its URI SAN says who it is for. PrivateKeyFile is its key,
	// CAFile the trusted authorities. All are PEM.
	CertFile       string
	PrivateKeyFile string
	CAFile         string

	// Role and Name are who this process is: what is minted is for them. Any
	// other certificate must be of this role, and of this name unless that is
	// empty. Role is required.
	Role Role
	Name string

	Labels map[string]string // for a minted certificate of an agent
	Hosts  []string          // DNS names and addresses in a minted certificate, for browsers

	// MintLifetime is how long a minted certificate is valid; another replaces
	// it after half of that. Zero means 24 h.
	MintLifetime time.Duration

	// AgentLifetime is how long a renewed credential of an agent is valid. Zero
	// means 90 days.
	AgentLifetime time.Duration

	// Revoked says why the holder of a certificate is no longer let in, or
	// nothing. serial is in lower-case hexadecimal. It is called for each new
	// connection, and again while one is up; it must be quick, and safe for
	// concurrent use. Nil revokes nothing.
	Revoked func(id ID, serial string) string

	// Now is the clock; nil is time.Now.
	Now func() time.Time

	// Logger is named "identity"; nil is silent.
	Logger *zap.Logger
}

func (c Config) withDefaults() Config {
	if c.MintLifetime == 0 {
		c.MintLifetime = 24 * time.Hour
	}
	if c.AgentLifetime == 0 {
		c.AgentLifetime = 90 * 24 * time.Hour
	}
	if c.Revoked == nil {
		c.Revoked = func(ID, string) string { return "" }
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	c.Logger = c.Logger.Named("identity")
	return c
}

func (c Config) validate() error {
	own := c.CertFile != "" || c.PrivateKeyFile != "" || c.CAFile != ""
	switch {
	case c.KeyFile == "" && !own:
		return errors.New("identity: KeyFile, or CertFile, PrivateKeyFile and CAFile, are required")
	case c.KeyFile != "" && own:
		return errors.New("identity: KeyFile and CertFile, PrivateKeyFile, CAFile exclude each other")
	case own && (c.CertFile == "" || c.PrivateKeyFile == "" || c.CAFile == ""):
		return errors.New("identity: CertFile, PrivateKeyFile and CAFile are needed together")
	case c.Role != RoleServer && c.Role != RoleAgent && c.Role != RoleOperator:
		return fmt.Errorf("identity: Role is %q; it is server, agent or operator", c.Role)
	case c.MintLifetime < time.Minute || c.AgentLifetime < time.Minute:
		return errors.New("identity: MintLifetime and AgentLifetime must be at least a minute")
	}
	return nil
}

// Source gives the TLS configurations of one process, and reads its files anew
// when they change. It is safe for concurrent use.
type Source struct {
	cfg   Config
	files *watched[material]

	mu      sync.Mutex // guards the fields below
	minted  *Credential
	mintOf  *Bundle // that signed minted
	remint  time.Time
	pending crypto.Signer // key of a renewal that was asked for
}

// material is what the files say: a bundle or a credential.
type material struct {
	bundle     *Bundle
	credential *Credential
	trust      trust
}

// Open reads the files. Its error says which is wrong, and how.
func Open(cfg Config) (*Source, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	s := &Source{cfg: cfg}
	files := []string{cfg.KeyFile}
	if cfg.KeyFile == "" {
		files = []string{cfg.CertFile, cfg.PrivateKeyFile, cfg.CAFile}
	}
	var err error
	if s.files, err = watch(files, s.load, cfg.Logger); err != nil {
		return nil, err
	}
	c, err := s.current()
	if err != nil {
		return nil, err
	}
	if late := validity(c.chain[:1], cfg.Now()); c.Expires().Before(cfg.Now()) {
		return nil, fmt.Errorf("identity: this host's own %w", late)
	}
	return s, nil
}

func (s *Source) load() (material, error) {
	var m material
	var err error
	if s.cfg.KeyFile != "" {
		m.bundle, m.credential, err = Read(s.cfg.KeyFile)
	} else {
		m.credential, err = readOwn(s.cfg)
	}
	if err != nil {
		return m, err
	}
	if m.bundle != nil {
		m.trust = newTrust(m.bundle.domain, m.bundle.Authorities())
		return m, nil
	}
	id := m.credential.id
	if id.Role != s.cfg.Role {
		return m, refuse(WrongRole, "this host's own is for %v, and this is a process of role %s", id, s.cfg.Role)
	}
	if s.cfg.Name != "" && id.Name != s.cfg.Name {
		return m, refuse(WrongName, "this host's own is for %v, and this is %s %q", id, s.cfg.Role, s.cfg.Name)
	}
	m.trust = newTrust(id.Domain, m.credential.anchors)
	return m, nil
}

// readOwn reads the files of a user's own public key infrastructure.
func readOwn(cfg Config) (*Credential, error) {
	fail := func(path string, err error) (*Credential, error) {
		return nil, fmt.Errorf("certificate file %s: %w", path, err)
	}
	certs, err := readCerts(cfg.CertFile)
	if err != nil {
		return fail(cfg.CertFile, err)
	}
	secret, err := readSecret(cfg.PrivateKeyFile)
	if err != nil {
		return nil, err
	}
	keys, err := parseBlocks(secret)
	if err == nil && len(keys.keys) != 1 {
		err = fmt.Errorf("it has %d private keys, one is expected", len(keys.keys))
	}
	if err == nil && !matches(certs[0], keys.keys[0]) {
		err = fmt.Errorf("it does not belong to the certificate in %s", cfg.CertFile)
	}
	if err != nil {
		return fail(cfg.PrivateKeyFile, err)
	}
	anchors, err := readCerts(cfg.CAFile)
	if err != nil {
		return fail(cfg.CAFile, err)
	}
	id, err := Of(certs[0])
	if err != nil {
		return fail(cfg.CertFile, fmt.Errorf("%w; give it the SAN URI:%s", err, ID{Domain: "DOMAIN", Role: cfg.Role, Name: "NAME"}.URI()))
	}
	return &Credential{id: id, key: keys.keys[0], chain: certs, anchors: anchors}, nil
}

func readCerts(path string) ([]*x509.Certificate, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := readBounded(f, path)
	if err != nil {
		return nil, err
	}
	p, err := parseBlocks(data)
	if err == nil && len(p.certs) == 0 {
		err = errors.New("it has no certificate")
	}
	return p.certs, err
}

// current is this process's own credential, minted anew when half of its life
// is over or the bundle has changed.
func (s *Source) current() (*Credential, error) {
	m := s.files.get()
	if m.credential != nil {
		return m.credential, nil
	}
	now := s.cfg.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.minted != nil && s.mintOf == m.bundle && now.Before(s.remint) {
		return s.minted, nil
	}
	c, err := m.bundle.Issue(ID{Role: s.cfg.Role, Name: s.cfg.Name, Labels: s.cfg.Labels}, s.cfg.Hosts, s.cfg.MintLifetime, now)
	if err != nil {
		return nil, err
	}
	s.minted, s.mintOf, s.remint = c, m.bundle, now.Add(s.cfg.MintLifetime/2)
	return c, nil
}

// ID is who this process is.
func (s *Source) ID() ID {
	c, err := s.current()
	if err != nil { // the bundle was good when it was opened, and is checked when it is read anew
		return ID{}
	}
	return c.id
}

// HoldsKey says whether the source is the cluster's key, so that it can sign.
func (s *Source) HoldsKey() bool { return s.files.get().bundle != nil }

// Expires is when the present certificate ends; one that was minted is replaced
// long before.
func (s *Source) Expires() time.Time {
	c, err := s.current()
	if err != nil {
		return time.Time{}
	}
	return c.Expires()
}

// Peer returns who the other end of a connection is, which a configuration of
// this Source has checked when it was made. It is an error if it has been
// revoked since.
func (s *Source) Peer(state tls.ConnectionState) (ID, error) {
	if len(state.PeerCertificates) == 0 {
		return ID{}, refuse(NoCertificate, "the other end showed none")
	}
	leaf := state.PeerCertificates[0]
	id, err := Of(leaf)
	if err != nil {
		return ID{}, refuse(NoIdentity, "%v", err)
	}
	if err := s.revoked(id, leaf); err != nil {
		return ID{}, err
	}
	return id, nil
}

// Live is Peer without the identity: nil while a connection may stay up.
func (s *Source) Live(state tls.ConnectionState) error {
	_, err := s.Peer(state)
	return err
}

func (s *Source) revoked(id ID, leaf *x509.Certificate) error {
	if why := s.cfg.Revoked(id, serialOf(leaf)); why != "" {
		return refuse(Revoked, "%v, serial %s: %s", id, serialOf(leaf), why)
	}
	return nil
}
