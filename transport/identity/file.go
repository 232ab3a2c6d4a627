package identity

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
)

// Both kinds of file are PEM, so that other tools read them. A bundle has for
// each authority, oldest first, its certificate, its cross-signed certificate
// unless it is the first, and its private key. A credential has its private
// key, the leaf, cross-signed authorities, and the trusted authorities.

const (
	maxFile  = 1 << 20 // bytes
	pemKey   = "PRIVATE KEY"
	pemCert  = "CERTIFICATE"
	maxCerts = 64
)

// Encode is the content of the bundle's file.
func (b *Bundle) Encode() ([]byte, error) {
	var out bytes.Buffer
	fmt.Fprintf(&out, "# The key of the ipvskit cluster %s. Whoever has it can be any server or agent of it:\n# keep it on the servers alone, readable by their user alone.\n", b.domain)
	for _, a := range b.authorities {
		writeCert(&out, a.cert)
		if a.cross != nil {
			writeCert(&out, a.cross)
		}
		if err := writeKey(&out, a.key); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// Encode is the content of the credential's file.
func (c *Credential) Encode() ([]byte, error) {
	var out bytes.Buffer
	fmt.Fprintf(&out, "# The credential of %v.\n", c.id)
	if c.key != nil {
		if err := writeKey(&out, c.key); err != nil {
			return nil, err
		}
	}
	for _, cert := range c.chain {
		writeCert(&out, cert)
	}
	for _, cert := range c.anchors {
		writeCert(&out, cert)
	}
	return out.Bytes(), nil
}

func writeCert(out *bytes.Buffer, cert *x509.Certificate) {
	_ = pem.Encode(out, &pem.Block{Type: pemCert, Bytes: cert.Raw}) // a Buffer takes all
}

func writeKey(out *bytes.Buffer, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("identity: encode a private key: %w", err)
	}
	return pem.Encode(out, &pem.Block{Type: pemKey, Bytes: der})
}

// blocks are the certificates and keys of a file, in order.
type blocks struct {
	certs []*x509.Certificate
	keys  []crypto.Signer
	// after[i] is how many certificates stand before key i.
	after []int
}

func parseBlocks(data []byte) (blocks, error) {
	var out blocks
	if len(data) > maxFile {
		return out, fmt.Errorf("%d bytes, at most %d are read", len(data), maxFile)
	}
	for {
		var block *pem.Block
		block, data = pem.Decode(data)
		if block == nil {
			break
		}
		if len(out.certs)+len(out.keys) >= maxCerts {
			return out, fmt.Errorf("more than %d certificates and keys", maxCerts)
		}
		switch block.Type {
		case pemCert:
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return out, fmt.Errorf("certificate %d: %w", len(out.certs)+1, err)
			}
			out.certs = append(out.certs, cert)
		case pemKey, "EC PRIVATE KEY", "RSA PRIVATE KEY":
			key, err := parseKey(block)
			if err != nil {
				return out, fmt.Errorf("private key %d: %w", len(out.keys)+1, err)
			}
			out.keys = append(out.keys, key)
			out.after = append(out.after, len(out.certs))
		case "EC PARAMETERS": // openssl writes it before a key
		default:
			return out, fmt.Errorf("a PEM block of type %q, where only certificates and unencrypted private keys are expected", block.Type)
		}
	}
	if len(out.certs)+len(out.keys) == 0 {
		return out, errors.New("it has no PEM block, neither certificate nor key")
	}
	return out, nil
}

func parseKey(block *pem.Block) (crypto.Signer, error) {
	var key any
	var err error
	switch block.Type {
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	default:
		key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	}
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T cannot sign", key)
	}
	return signer, nil
}

func matches(cert *x509.Certificate, key crypto.Signer) bool {
	public, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(key.Public())
}

func selfSigned(cert *x509.Certificate) bool {
	return bytes.Equal(cert.RawIssuer, cert.RawSubject) && cert.CheckSignatureFrom(cert) == nil
}

// Parse reads the content of a key file: exactly one of the two is returned.
func Parse(data []byte) (*Bundle, *Credential, error) {
	p, err := parseBlocks(data)
	if err != nil {
		return nil, nil, err
	}
	if len(p.certs) == 0 {
		return nil, nil, errors.New("it has a private key and no certificate")
	}
	if p.certs[0].IsCA {
		b, err := bundleOf(p)
		return b, nil, err
	}
	c, err := credentialOf(p)
	return nil, c, err
}

func bundleOf(p blocks) (*Bundle, error) {
	b := &Bundle{}
	at := 0
	for i, key := range p.keys {
		signer, ok := key.(*ecdsa.PrivateKey)
		certs := p.certs[at:p.after[i]]
		at = p.after[i]
		if !ok || len(certs) == 0 || len(certs) > 2 {
			return nil, fmt.Errorf("authority %d is not a certificate, at most one cross-signed certificate, and an ECDSA key", i+1)
		}
		a := authority{cert: certs[0], key: signer}
		id, err := Of(a.cert)
		switch {
		case err != nil:
			return nil, fmt.Errorf("authority %d: %w", i+1, err)
		case !a.cert.IsCA || id.Role != roleCA || !selfSigned(a.cert):
			return nil, fmt.Errorf("authority %d: certificate %q is not that of an authority", i+1, a.cert.Subject)
		case !matches(a.cert, key):
			return nil, fmt.Errorf("authority %d: its key does not belong to its certificate", i+1)
		case b.domain != "" && id.Domain != b.domain:
			return nil, fmt.Errorf("authority %d is of %s, the one before of %s", i+1, id.Domain, b.domain)
		}
		b.domain = id.Domain
		if len(certs) == 2 {
			a.cross = certs[1]
			if i == 0 || !matches(a.cross, key) || a.cross.CheckSignatureFrom(b.authorities[i-1].cert) != nil {
				return nil, fmt.Errorf("authority %d: its second certificate is not its own, signed by the authority before", i+1)
			}
		}
		b.authorities = append(b.authorities, a)
	}
	if at != len(p.certs) || len(b.authorities) == 0 || len(b.authorities) > maxAuthorities {
		return nil, fmt.Errorf("a cluster's key has 1 to %d authorities, each with its private key; this has %d certificates and %d keys", maxAuthorities, len(p.certs), len(p.keys))
	}
	return b, nil
}

func credentialOf(p blocks) (*Credential, error) {
	id, err := Of(p.certs[0])
	if err != nil {
		return nil, err
	}
	c := &Credential{id: id, chain: p.certs[:1:1]}
	switch {
	case len(p.keys) > 1:
		return nil, fmt.Errorf("a credential has one private key, this has %d", len(p.keys))
	case len(p.keys) == 1 && !matches(p.certs[0], p.keys[0]):
		return nil, fmt.Errorf("the private key does not belong to the certificate of %v", id)
	case len(p.keys) == 1:
		c.key = p.keys[0]
	}
	for _, cert := range p.certs[1:] {
		switch {
		case !cert.IsCA:
			return nil, fmt.Errorf("certificate %q is neither the first nor that of an authority", cert.Subject)
		case selfSigned(cert):
			c.anchors = append(c.anchors, cert)
		default:
			c.chain = append(c.chain, cert)
		}
	}
	if len(c.anchors) == 0 {
		return nil, errors.New("a credential has the certificate of at least one trusted authority, this has none")
	}
	return c, nil
}

// Read reads a key file. A file that others than its owner may read is refused.
func Read(path string) (*Bundle, *Credential, error) {
	data, err := readSecret(path)
	if err != nil {
		return nil, nil, err
	}
	b, c, err := Parse(data)
	if err == nil && c != nil && c.key == nil {
		err = errors.New("it has no private key")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("key file %s: %w", path, err)
	}
	return b, c, nil
}

func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	// Windows' access lists do not show in the mode.
	if mode := info.Mode().Perm(); mode&0o077 != 0 && runtime.GOOS != "windows" {
		return nil, fmt.Errorf("key file %s has mode %04o: others than its owner may use it; chmod 600 %s", path, mode, path)
	}
	return readBounded(f, path)
}

func readBounded(r io.Reader, path string) ([]byte, error) { return readAtMost(r, path, maxFile) }

func readAtMost(r io.Reader, path string, most int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if int64(len(data)) > most {
		return nil, fmt.Errorf("%s has more than %d bytes, which is as many as are read", path, most)
	}
	return data, nil
}

// Create writes a new file that only its owner can read. An existing one is
// left alone, and the error matches fs.ErrExist.
func Create(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := fill(f, data); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return syncDir(filepath.Dir(path))
}

// Replace writes a file that only its owner can read, in place of an older one:
// after a crash there is the one or the other.
func Replace(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	err = fill(f, data)
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return syncDir(filepath.Dir(path))
}

func fill(f *os.File, data []byte) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // a directory cannot be synced there
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
