package probe

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"github.com/ipvskit/ipvskit/healthcheck"
)

const (
	headerLimit  = 64 << 10 // bytes of status line and headers that are read at most
	interimLimit = 5        // answers of class 1xx that are passed over at most
	framing      = 8        // times a body's length that chunks of one byte may take, roughly
)

// ask1 asks by HTTP/1.1.
func (p *HTTP) ask1(ctx context.Context, x exchange, conn io.ReadWriter) (res healthcheck.Result, code int, location string) {
	if _, err := io.WriteString(conn, p.request(x)); err != nil {
		return failed(ctx, phaseRequest, p.expected(x), err), 0, ""
	}
	in := readers.Get().(*reader)
	defer in.put()
	in.reset(conn, headerLimit)
	a, err := in.answer(x.method) //nolint:bodyclose // which would read to its end; the connection is closed
	if err != nil {
		return failed(ctx, phaseAnswer, p.expected(x), err), 0, ""
	}
	return p.judge(ctx, x, answer{a.StatusCode, a.Status, a.Header.Get("Location"), func(limit int) ([]byte, error) {
		in.allow(framing*int64(limit) + headerLimit)
		return io.ReadAll(io.LimitReader(a.Body, int64(limit)+1))
	}})
}

// request is what is sent for x by HTTP/1.1.
func (p *HTTP) request(x exchange) string {
	var b strings.Builder
	b.Grow(256)
	b.WriteString(x.method + " " + x.uri + " HTTP/1.1\r\nHost: " + x.host + "\r\n")
	for _, f := range p.fields(x) {
		b.WriteString(f.Name + ": " + f.Value + "\r\n")
	}
	b.WriteString("Connection: close\r\n\r\n")
	return b.String()
}

var (
	errHeaderSize = fmt.Errorf("more than %d bytes of headers, or of framing around the body", headerLimit)
	errInterim    = fmt.Errorf("more than %d interim answers", interimLimit)
)

var readers = sync.Pool{New: func() any {
	r := new(reader)
	r.buf = bufio.NewReaderSize(r, 2048)
	return r
}}

// reader reads an answer within bounds.
type reader struct {
	buf  *bufio.Reader
	from io.Reader
	left int64
	err  error // that ended the reading
}

func (r *reader) reset(from io.Reader, limit int64) {
	r.from, r.left, r.err = from, limit, nil
	r.buf.Reset(r)
}

func (r *reader) put() {
	r.reset(nil, 0)
	readers.Put(r)
}

func (r *reader) allow(limit int64) { r.left = limit }

func (r *reader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		r.err = errHeaderSize
		return 0, r.err
	}
	n, err := r.from.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	r.err = err
	return n, err
}

// answer reads up to the end of the headers of the final answer. Its body need
// not be closed, which would read to its end: the connection is.
func (r *reader) answer(method string) (*http.Response, error) {
	for range interimLimit + 1 {
		answer, err := http.ReadResponse(r.buf, &http.Request{Method: method})
		switch {
		case err != nil && r.err != nil:
			return nil, r.err // a line that was cut off is not malformed
		case err != nil:
			return nil, err
		}
		if answer.StatusCode/100 != 1 || answer.StatusCode == http.StatusSwitchingProtocols {
			return answer, nil
		}
	}
	return nil, errInterim
}
