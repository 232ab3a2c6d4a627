package identity

import "fmt"

// Reason is why a certificate is refused.
type Reason uint8

const (
	// NoCertificate: the other end showed none.
	NoCertificate Reason = 1 + iota
	// WrongCA: no authority that is trusted here has signed it.
	WrongCA
	// Expired: it is no longer valid by this host's clock.
	Expired
	// NotYetValid: it is not valid yet by this host's clock.
	NotYetValid
	// NoIdentity: its URI SAN does not say who its holder is.
	NoIdentity
	// WrongCluster: its holder belongs to another domain.
	WrongCluster
	// WrongRole: its holder has a role that is not taken here.
	WrongRole
	// WrongName: its holder is not who it says.
	WrongName
	// Revoked: its name or serial number was revoked.
	Revoked
)

func (r Reason) String() string {
	switch r {
	case NoCertificate:
		return "no certificate"
	case WrongCA:
		return "wrong CA"
	case Expired:
		return "expired"
	case NotYetValid:
		return "not yet valid"
	case NoIdentity:
		return "no identity"
	case WrongCluster:
		return "wrong cluster"
	case WrongRole:
		return "wrong role"
	case WrongName:
		return "wrong name"
	case Revoked:
		return "revoked"
	}
	return fmt.Sprintf("reason %d", uint8(r))
}

// Error says why a certificate is refused.
type Error struct {
	Reason Reason
	Detail string // a sentence for people: what was expected, what was found, what to do
}

func (e *Error) Error() string {
	return fmt.Sprintf("certificate refused (%s): %s", e.Reason, e.Detail)
}

func refuse(r Reason, format string, args ...any) *Error {
	return &Error{Reason: r, Detail: fmt.Sprintf(format, args...)}
}
