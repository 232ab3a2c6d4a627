package identity

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// Role is what the holder of a certificate may do.
type Role string

const (
	// RoleServer is a member of the cluster, or one that joins.
	RoleServer Role = "server"
	// RoleAgent reads its own view and reports as itself.
	RoleAgent Role = "agent"
	// RoleOperator is a person or a program that uses the HTTP API.
	RoleOperator Role = "operator"

	roleCA Role = "ca" // an authority; it is nobody's role on a connection
)

const scheme = "ipvskit"

// ID is who the holder of a certificate is.
type ID struct {
	Domain string            // of the cluster's key: 1 to 63 of a-z, 0-9, '.', '-'
	Role   Role              // required
	Name   string            // 1 to 253 letters, digits, '.', '_', '-'
	Labels map[string]string // of an agent: at most 32, keys and values as a name of at most 63, values may be empty
}

func (id ID) String() string { return fmt.Sprintf("%s %q of %s", id.Role, id.Name, id.Domain) }

// URI is the form in a certificate's SAN.
func (id ID) URI() *url.URL {
	q := url.Values{}
	for k, v := range id.Labels {
		q.Set(k, v)
	}
	return &url.URL{Scheme: scheme, Host: id.Domain, Path: "/" + string(id.Role) + "/" + id.Name, RawQuery: q.Encode()}
}

// Validate says what of the ID cannot be put into a certificate.
func (id ID) Validate() error {
	if err := checkDomain(id.Domain); err != nil {
		return err
	}
	if !slices.Contains([]Role{RoleServer, RoleAgent, RoleOperator, roleCA}, id.Role) {
		return fmt.Errorf("role %q is not server, agent or operator", id.Role)
	}
	if !isName(id.Name, 253) {
		return fmt.Errorf("name %.260q has not 1 to 253 letters, digits, '.', '_' and '-'", id.Name)
	}
	if len(id.Labels) > 0 && id.Role != RoleAgent {
		return fmt.Errorf("a certificate of role %s has no labels; agents have", id.Role)
	}
	if len(id.Labels) > 32 {
		return fmt.Errorf("%d labels, at most 32 are allowed", len(id.Labels))
	}
	for k, v := range id.Labels {
		if !isName(k, 63) || v != "" && !isName(v, 63) {
			return fmt.Errorf("label %.70q=%.70q: a key has 1 to 63 letters, digits, '.', '_' and '-', a value the same or nothing", k, v)
		}
	}
	return nil
}

func checkDomain(s string) error {
	ok := len(s) >= 1 && len(s) <= 63 && s[0] != '.' && s[len(s)-1] != '.' && !strings.Contains(s, "..")
	for i := range len(s) {
		c := s[i]
		ok = ok && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '.' || c == '-')
	}
	if !ok {
		return fmt.Errorf("domain %.70q has not 1 to 63 of a-z, 0-9, '-' and single '.'", s)
	}
	return nil
}

func isName(s string, most int) bool {
	return len(s) >= 1 && len(s) <= most && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-')
	})
}

// ParseID reads an ID from its URI, strictly.
func ParseID(u *url.URL) (ID, error) {
	var id ID
	if u.Scheme != scheme || u.Opaque != "" || u.User != nil || u.Fragment != "" {
		return id, fmt.Errorf("%q is not of the form %s://DOMAIN/ROLE/NAME", u, scheme)
	}
	role, name, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	if !ok {
		return id, fmt.Errorf("%q is not of the form %s://DOMAIN/ROLE/NAME", u, scheme)
	}
	id = ID{Domain: u.Host, Role: Role(role), Name: name}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return ID{}, fmt.Errorf("labels of %q: %w", u, err)
	}
	for k, v := range q {
		if len(v) != 1 {
			return ID{}, fmt.Errorf("%q has label %q more than once", u, k)
		}
		if id.Labels == nil {
			id.Labels = map[string]string{}
		}
		id.Labels[k] = v[0]
	}
	if err := id.Validate(); err != nil {
		return ID{}, fmt.Errorf("%q: %w", u, err)
	}
	return id, nil
}

// Of returns who a certificate names. It does not check the certificate.
func Of(cert *x509.Certificate) (ID, error) {
	var found []*url.URL
	for _, u := range cert.URIs {
		if u.Scheme == scheme {
			found = append(found, u)
		}
	}
	if len(found) != 1 {
		return ID{}, fmt.Errorf("certificate %q has %d URI SANs of the form %s://DOMAIN/ROLE/NAME, it must have one", cert.Subject, len(found), scheme)
	}
	return ParseID(found[0])
}
