package identity

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"slices"
	"time"

	"go.uber.org/zap"
)

// serverSNI is the name by which one server calls another where browsers are
// served too. It tells the two apart before any certificate is shown.
const serverSNI = "server.ipvskit.internal"

// ServerTLS accepts connections of the given roles, each with a certificate.
func (s *Source) ServerTLS(roles ...Role) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true, // every connection shows its certificate
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.certificate() },
		VerifyConnection:       func(cs tls.ConnectionState) error { return s.accept(cs, roles) },
	}
}

// ClientTLS dials servers. The host's name plays no part: role and domain do.
func (s *Source) ClientTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// VerifyConnection below takes the place of Go's own check, which looks
		// for the dialed name.
		InsecureSkipVerify: true,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c, err := s.current()
			if err != nil {
				return nil, err
			}
			// The other end could only refuse it, with an alert that says little.
			if now := s.cfg.Now(); now.After(c.chain[0].NotAfter) {
				return nil, fmt.Errorf("this host's own %w", validity(c.chain[:1], now))
			}
			return c.tls(), nil
		},
		VerifyConnection: func(cs tls.ConnectionState) error { return s.accept(cs, []Role{RoleServer}) },
	}
}

func (s *Source) certificate() (*tls.Certificate, error) {
	c, err := s.current()
	if err != nil {
		return nil, err
	}
	return c.tls(), nil
}

// accept judges the other end of a new connection.
func (s *Source) accept(cs tls.ConnectionState, roles []Role) error {
	id, refused := s.files.get().trust.verify(cs.PeerCertificates, s.cfg.Now())
	if refused != nil {
		return refused
	}
	if !slices.Contains(roles, id.Role) {
		return refuse(WrongRole, "it is for %v; taken here are %v", id, roles)
	}
	return s.revoked(id, cs.PeerCertificates[0])
}

// HTTPTLS serves browsers and other programs as well as servers, on one port.
// Servers, which call with HTTPClient, show each other certificates. Browsers
// are asked for one, and may come without; what an anonymous or an agent may do
// is for the handler to say, which finds them by Peer. web is the certificate that browsers see; nil is this Source's own.
func (s *Source) HTTPTLS(web *WebCertificate) *tls.Config {
	protocols := []string{"h2", "http/1.1"}
	servers := s.ServerTLS(RoleServer)
	servers.NextProtos = protocols
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: protocols,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if hello.ServerName == serverSNI {
				return servers, nil
			}
			return &tls.Config{
				MinVersion: tls.VersionTLS13,
				NextProtos: protocols,
				ClientAuth: tls.RequestClientCert,
				// So that a browser offers only certificates of this cluster.
				ClientCAs:              s.files.get().trust.pool,
				SessionTicketsDisabled: true,
				GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
					if web != nil {
						return web.files.get(), nil
					}
					return s.certificate()
				},
				VerifyConnection: func(cs tls.ConnectionState) error {
					if len(cs.PeerCertificates) == 0 {
						return nil
					}
					return s.accept(cs, []Role{RoleOperator, RoleServer, RoleAgent})
				},
			}, nil
		},
	}
}

// HTTPClient calls other servers, over HTTPS whatever the request's scheme
// says, without a proxy and without following redirects.
func (s *Source) HTTPClient() *http.Client {
	cfg := s.ClientTLS()
	cfg.ServerName = serverSNI
	return &http.Client{
		Transport: secured{&http.Transport{
			TLSClientConfig: cfg, MaxIdleConnsPerHost: 2, IdleConnTimeout: 30 * time.Second,
			TLSHandshakeTimeout: 2 * time.Second, ResponseHeaderTimeout: 30 * time.Second, MaxResponseHeaderBytes: 64 << 10,
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// secured sends no request in plain text.
type secured struct{ *http.Transport }

func (t secured) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL.Scheme = "https"
	return t.Transport.RoundTrip(r)
}

// WebCertificate is a certificate for browsers, from files that are read anew
// when they change.
type WebCertificate struct{ files *watched[*tls.Certificate] }

// OpenWebCertificate reads a certificate, followed by those between it and its
// authority, and its key, both PEM. A nil logger is silent.
func OpenWebCertificate(certFile, keyFile string, log *zap.Logger) (*WebCertificate, error) {
	if log == nil {
		log = zap.NewNop()
	}
	files, err := watch([]string{certFile, keyFile}, func() (*tls.Certificate, error) {
		if _, err := readSecret(keyFile); err != nil {
			return nil, err
		}
		c, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, fmt.Errorf("certificate file %s: %w", certFile, err)
		}
		return &c, nil
	}, log.Named("identity"))
	if err != nil {
		return nil, err
	}
	return &WebCertificate{files}, nil
}
