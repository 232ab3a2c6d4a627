package lbstate

import (
	"cmp"
	"crypto/x509"
	"fmt"
	"net/textproto"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Limits of what a check's probe is told.
const (
	maxHeaders   = 32
	maxHeader    = 1024
	maxRedirects = 10
	maxCA        = 32 << 10
	maxArgs      = 32
	maxArg       = 1024
	maxCodes     = 16
	maxAddresses = 32
)

const methodHead = "HEAD" // net/http has it, and much that this package has no use for

var (
	tokenForm   = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$") // RFC 9110, section 5.6.2
	programForm = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,62}$`)

	dnsTypes = []string{"A", "AAAA", "CNAME", "MX", "NS", "PTR", "SOA", "SRV", "TXT"}
	// Response codes of RFC 1035 and RFC 2136.
	dnsCodes = []string{"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN", "YXRRSET", "NXRRSET", "NOTAUTH", "NOTZONE"}

	// probeHeaders are those that a probe sets itself: they would change where a
	// request goes, or ends.
	probeHeaders = []string{"Host", "Connection", "Content-Length", "Transfer-Encoding", "Upgrade", "Te", "Trailer", "Expect"}
)

// escaped checks a text with the escapes of Unescape.
func (f *faults) escaped(path, text string, most int) {
	f.text(path, text, most)
	if _, err := Unescape(text); err != nil {
		f.add(path, text, `text with \r, \n, \t, \0, \\ and \xHH`, err.Error())
	}
}

// visible checks a text that goes into a protocol's line.
func (f *faults) visible(path, text string, most int) {
	f.text(path, text, most)
	if !printable(text) {
		f.add(path, text, "ASCII without spaces and control characters", "is not one word")
	}
}

func printable(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// dialable says whether a text is an absolute URL of one of these schemes, with
// a host and perhaps a port, but no user.
func dialable(text string, schemes ...string) bool {
	u, err := url.Parse(text)
	if err != nil || !slices.Contains(schemes, u.Scheme) || u.Hostname() == "" || u.User != nil || !printable(u.Host) {
		return false
	}
	port, err := strconv.ParseUint(cmp.Or(u.Port(), "80"), 10, 16)
	return err == nil && port > 0
}

// validateRequest is about what goes with an HTTP request.
func (c *HealthCheck) validateRequest(f *faults, path string) {
	if c.Method != "" && (len(c.Method) > 32 || !tokenForm.MatchString(c.Method)) {
		f.add(path+".method", c.Method, "such as GET, HEAD, OPTIONS", "is not a method")
	}
	if c.Method == methodHead && !c.expectsNothing() {
		f.add(path+".method", c.Method, "GET", "has no body in which something could be expected")
	}
	if c.HTTPVersion != "" {
		oneOf(f, path+".http_version", c.HTTPVersion, "1.1", "2", "auto")
	}
	f.between(path+".follow_redirects", c.FollowRedirects, 0, maxRedirects)
	if len(c.Headers) > maxHeaders {
		f.add(path+".headers", len(c.Headers), fmt.Sprintf("at most %d", maxHeaders), "there are too many")
		return
	}
	seen := map[string]bool{}
	for name, value := range c.Headers {
		at, canonical := path+".headers."+clip(name), textproto.CanonicalMIMEHeaderKey(name)
		switch {
		case len(name) > maxLabel || !tokenForm.MatchString(name):
			f.add(at, name, "the name of a header field", "is not a name")
		case slices.Contains(probeHeaders, canonical):
			f.add(at, name, "", "is set by the probe itself; for Host there is the field host")
		case seen[canonical]:
			f.add(at, name, "", "stands twice: case does not tell header fields apart")
		}
		seen[canonical] = true
		f.text(at, value, maxHeader)
		if strings.ContainsFunc(value, func(r rune) bool { return unicode.IsControl(r) && r != '\t' }) {
			f.add(at, value, "no control characters", "cannot be sent")
		}
	}
}

func (t *CheckTLS) validate(f *faults, path, kind string) {
	if t == nil {
		return
	}
	f.visible(path+".server_name", t.ServerName, 255)
	f.between(path+".min_days", t.MinDays, -1, 3650)
	f.text(path+".ca", t.CA, maxCA)
	switch {
	case t.CA == "":
	case t.SkipVerify:
		f.add(path+".ca", "", "", "does not go with skip_verify, which takes any certificate")
	case !x509.NewCertPool().AppendCertsFromPEM([]byte(t.CA)):
		f.add(path+".ca", t.CA, "certificates as PEM, as in -----BEGIN CERTIFICATE-----", "has no certificate")
	}
	if t.Implicit && kind != CheckTypeSMTP {
		f.add(path+".implicit", true, "", fmt.Sprintf("does not belong to type %s: it goes with smtp", clip(kind)))
	}
}

func (d *CheckDNS) validate(f *faults, path string) {
	if d == nil {
		return
	}
	name := strings.TrimSuffix(d.Name, ".")
	f.visible(path+".name", name, 253)
	switch labels := strings.Split(name, "."); {
	case d.Name == "":
		f.add(path+".name", "", "a domain name", "is missing")
	case d.Name != "." && slices.ContainsFunc(labels, func(l string) bool { return l == "" || len(l) > 63 }):
		f.add(path+".name", d.Name, "labels of 1 to 63 bytes", "is not a domain name")
	}
	oneOf(f, path+".type", d.Type, dnsTypes...)
	if len(d.ExpectCodes) > maxCodes {
		f.add(path+".expect_codes", len(d.ExpectCodes), fmt.Sprintf("at most %d", maxCodes), "there are too many")
	}
	for i, code := range d.ExpectCodes {
		oneOf(f, fmt.Sprintf("%s.expect_codes[%d]", path, i), code, dnsCodes...)
	}
	if len(d.ExpectAddresses) > maxAddresses {
		f.add(path+".expect_addresses", len(d.ExpectAddresses), fmt.Sprintf("at most %d", maxAddresses), "there are too many")
	}
	for i, a := range d.ExpectAddresses {
		if !a.IsValid() || a.Zone() != "" || a.Is4() && d.Type != "A" || a.Is6() && d.Type != "AAAA" {
			f.add(fmt.Sprintf("%s.expect_addresses[%d]", path, i), a, "IPv4 with type A, IPv6 with type AAAA", "cannot be in an answer of type "+clip(d.Type))
		}
	}
	if len(d.ExpectAddresses) > 0 && len(d.ExpectCodes) > 0 && !slices.Contains(d.ExpectCodes, "NOERROR") {
		f.add(path+".expect_addresses", "", "expect_codes with NOERROR", "an answer with another code has no addresses")
	}
}

func (x *CheckExec) validate(f *faults, path string) {
	if x == nil {
		return
	}
	if !programForm.MatchString(x.Program) {
		f.add(path+".program", x.Program, "1 to 63 letters, digits, '.', '_', '-', not a dot or dash first",
			fmt.Sprintf("%q is not the name of a program: it is looked for in the directory that each server's own configuration gives", clip(x.Program)))
	}
	if len(x.Args) > maxArgs {
		f.add(path+".args", len(x.Args), fmt.Sprintf("at most %d", maxArgs), "there are too many")
	}
	for i, arg := range x.Args {
		at := fmt.Sprintf("%s.args[%d]", path, i)
		f.text(at, arg, maxArg)
		if strings.Contains(arg, "\x00") {
			f.add(at, arg, "no zero byte", "cannot be given to a program")
		}
	}
}

func (v *CheckVia) validate(f *faults, path string) {
	if v == nil {
		return
	}
	if s := v.Source; s.IsValid() && (s.IsUnspecified() || s.IsMulticast() || s.Zone() != "") {
		f.add(path+".source", s, "a unicast address of the checking host", "cannot be a source")
	}
	// dev_valid_name of the kernel's net/core/dev.c
	if n := v.Interface; n != "" && (len(n) > 15 || n == "." || n == ".." || strings.ContainsFunc(n, func(r rune) bool { return r <= ' ' || r > '~' || r == '/' || r == ':' })) {
		f.add(path+".interface", n, "1 to 15 characters without space, '/' or ':'", "is not the name of an interface")
	}
}
