package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/textproto"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/ipvskit/ipvskit/healthcheck"
)

// smtpLimit is how many bytes of a server's replies are read at most.
const smtpLimit = 64 << 10

// SMTPConfig says how an SMTP probe asks.
type SMTPConfig struct {
	// Address and Port are asked instead of the target's, where they are set.
	Address netip.Addr
	Port    uint16
	// Hello is the name that is given with EHLO. Default: this host's.
	Hello string
	// TLS asks for a handshake: after STARTTLS, which the server must offer, or
	// with Implicit at once (port 465). The name that the certificate must have is
	// the address that is asked, unless ServerName says another.
	TLS      *TLSConfig
	Implicit bool
	Via      Via
}

// SMTP is a probe that greets a mail server, and leaves: 220, EHLO, QUIT. It is
// made by NewSMTP.
type SMTP struct{ cfg SMTPConfig }

// NewSMTP makes an SMTP probe.
func NewSMTP(cfg SMTPConfig) (*SMTP, error) {
	if cfg.Hello == "" {
		if host, err := os.Hostname(); err == nil && token(host) {
			cfg.Hello = host
		} else {
			cfg.Hello = "localhost"
		}
	}
	switch {
	case !visible(cfg.Hello):
		return nil, fmt.Errorf("smtp probe: hello %q has spaces or control characters", cfg.Hello)
	case cfg.Implicit && cfg.TLS == nil:
		return nil, errors.New("smtp probe: implicit goes with TLS")
	}
	if err := cfg.Via.validate(); err != nil {
		return nil, fmt.Errorf("smtp probe: %w", err)
	}
	return &SMTP{cfg: cfg}, nil
}

// Probe greets target.
func (p *SMTP) Probe(ctx context.Context, target netip.AddrPort) healthcheck.Result {
	target = at(target, p.cfg.Address, p.cfg.Port)
	conn, err := p.cfg.Via.connect(ctx, target)
	if err != nil {
		return failed(ctx, phaseConnect, "a mail server at "+target.String(), err)
	}
	defer conn.Close()
	defer bind(ctx, conn)()
	name := target.Addr().WithZone("").String()
	var warning string
	secure := func() *healthcheck.Result {
		s, err := p.cfg.TLS.handshake(ctx, conn, name)
		if err != nil {
			res := failed(ctx, phaseTLS, "a TLS handshake with "+target.String(), err)
			return &res
		}
		conn, warning = s, p.cfg.TLS.warning(s)
		return nil
	}
	if p.cfg.Implicit {
		if res := secure(); res != nil {
			return *res
		}
	}
	d := newSMTPDialogue(conn)
	if _, err := d.reply("a greeting", 220); err != nil {
		return d.result(ctx, err)
	}
	features, err := d.command("EHLO "+p.cfg.Hello, 250)
	if err != nil {
		return d.result(ctx, err)
	}
	if p.cfg.TLS != nil && !p.cfg.Implicit {
		if !offersStartTLS(features) {
			return healthcheck.Result{Class: healthcheck.BadBody, Phase: phaseAnswer, Expected: "STARTTLS among what EHLO lists", Found: quote(features)}
		}
		if _, err := d.command("STARTTLS", 220); err != nil {
			return d.result(ctx, err)
		}
		if d.in.R.Buffered() > 0 { // what somebody put in before the handshake must not count after it
			return healthcheck.Result{Class: healthcheck.Protocol, Phase: phaseAnswer, Expected: "silence after STARTTLS", Found: "more in the clear"}
		}
		if res := secure(); res != nil {
			return *res
		}
		d = newSMTPDialogue(conn)
		if _, err := d.command("EHLO "+p.cfg.Hello, 250); err != nil {
			return d.result(ctx, err)
		}
	}
	// A server that is left without a word logs a complaint. Its answer would
	// change nothing, and is not awaited.
	io.WriteString(conn, "QUIT\r\n") //nolint:errcheck // politeness, no more
	return healthcheck.Result{Warning: warning}
}

func offersStartTLS(features string) bool {
	return slices.ContainsFunc(strings.Split(features, "\n"), func(l string) bool { return strings.EqualFold(strings.TrimSpace(l), "STARTTLS") })
}

// smtpDialogue reads replies within bounds.
type smtpDialogue struct {
	conn net.Conn
	from *reader
	in   *textproto.Reader
	want string // of the last reply, for people
}

func newSMTPDialogue(conn net.Conn) *smtpDialogue {
	d := &smtpDialogue{conn: conn, from: &reader{from: conn, left: smtpLimit}}
	d.in = textproto.NewReader(bufio.NewReader(d.from))
	return d
}

func (d *smtpDialogue) command(line string, code int) (string, error) {
	if _, err := io.WriteString(d.conn, line+"\r\n"); err != nil {
		d.want = "to send " + line
		return "", requestError{err}
	}
	return d.reply("an answer to "+line, code)
}

// reply reads one, of one or more lines, whose code must be the one given.
func (d *smtpDialogue) reply(what string, want int) (string, error) {
	d.want = fmt.Sprintf("%s with %d", what, want)
	var texts []string
	for first := ""; ; {
		line, err := d.in.ReadLine()
		if err != nil {
			return "", err
		}
		if d.from.err != nil && d.in.R.Buffered() == 0 {
			return "", d.from.err // the line is cut off
		}
		code, text, last, ok := smtpLine(line)
		if !ok || first != "" && code != first {
			return "", fmt.Errorf("%q, not a reply", quote(line))
		}
		first = code
		texts = append(texts, text)
		switch {
		case !last:
		case code != strconv.Itoa(want):
			return "", refusal{quote(code + " " + strings.Join(texts, " "))}
		default:
			return strings.Join(texts, "\n"), nil
		}
	}
}

// smtpLine takes a line of a reply apart (RFC 5321, section 4.2).
func smtpLine(line string) (code, text string, last, ok bool) {
	if len(line) < 3 || strings.Trim(line[:3], "0123456789") != "" {
		return "", "", false, false
	}
	if len(line) == 3 {
		return line, "", true, true
	}
	return line[:3], line[4:], line[3] == ' ', line[3] == ' ' || line[3] == '-'
}

// refusal is a reply with another code than the one that was wanted.
type refusal struct{ text string }

func (r refusal) Error() string { return r.text }

// result makes one of the error of the last command or reply.
func (d *smtpDialogue) result(ctx context.Context, err error) healthcheck.Result {
	var refused refusal
	switch {
	case errors.As(err, &refused):
		return healthcheck.Result{Class: healthcheck.BadStatus, Phase: phaseAnswer, Expected: quote(d.want), Found: refused.text}
	case errors.As(err, new(requestError)):
		return failed(ctx, phaseRequest, quote(d.want), err)
	default:
		return failed(ctx, phaseAnswer, quote(d.want), err)
	}
}
