package probe

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/ipvskit/ipvskit/healthcheck"
)

// h2Stream is the only one of a connection.
const h2Stream = 1

// errNotH2 says that a server speaks something else.
var errNotH2 = errors.New("an answer that is not HTTP/2")

// h2Answer is the answer to the one request of an HTTP/2 connection.
type h2Answer struct {
	header, trailer []hpack.HeaderField
	body            []byte
	cut             bool // the body is longer than it may be, and was not read on
	// unsent is why something could not be acknowledged. What the server has said
	// before still counts; when there is no more, this says why.
	unsent error
}

func (a h2Answer) value(name string) string    { return fieldOf(a.header, name) }
func (a h2Answer) trailing(name string) string { return fieldOf(a.trailer, name) }

func fieldOf(fields []hpack.HeaderField, name string) string {
	i := slices.IndexFunc(fields, func(f hpack.HeaderField) bool { return f.Name == name })
	if i < 0 {
		return ""
	}
	return fields[i].Value
}

// status is the answer's code; an error when there is none that is valid.
func (a h2Answer) status() (int, error) {
	s := a.value(":status")
	code, err := strconv.Atoi(s)
	if err != nil || len(s) != 3 || code < 100 {
		return 0, fmt.Errorf("status %q", s)
	}
	return code, nil
}

// h2Request is written at once: a probe's request fits into the first windows.
func h2Request(fields []hpack.HeaderField, body []byte, limit int) ([]byte, error) {
	var out, block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range fields {
		if err := enc.WriteField(f); err != nil {
			return nil, err
		}
	}
	out.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&out, nil)
	window := uint32(h2Window(limit))
	err := errors.Join(
		f.WriteSettings(
			http2.Setting{ID: http2.SettingEnablePush, Val: 0},
			http2.Setting{ID: http2.SettingInitialWindowSize, Val: window},
			http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: headerLimit},
		),
		f.WriteWindowUpdate(0, window),
		f.WriteHeaders(http2.HeadersFrameParam{StreamID: h2Stream, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: len(body) == 0}),
	)
	if len(body) > 0 {
		err = errors.Join(err, f.WriteData(h2Stream, true, body))
	}
	return out.Bytes(), err
}

// h2Window holds a body that is one byte too long, and padding.
func h2Window(limit int) int64 { return 2*int64(limit) + 1<<16 }

// h2Exchange sends one request over a new connection and reads its answer, up
// to limit bytes of its body. want says by the header whether the body is to be
// read at all. It owns the connection, and reads within bounds.
func h2Exchange(conn io.ReadWriter, request []byte, limit int, want func(h2Answer) bool) (h2Answer, error) {
	if _, err := conn.Write(request); err != nil {
		return h2Answer{}, requestError{err}
	}
	bounded := &reader{from: conn, left: framing*h2Window(limit) + headerLimit}
	in := bufio.NewReaderSize(bounded, 4096)
	if first, err := in.Peek(5); string(first) == "HTTP/" {
		return h2Answer{}, errNotH2
	} else if err != nil {
		return h2Answer{}, err
	}
	f := http2.NewFramer(conn, in)
	f.SetMaxReadFrameSize(1 << 14) // the smallest that a peer must respect, and our setting
	f.MaxHeaderListSize = headerLimit
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var a h2Answer
	for first := true; ; first = false {
		frame, err := f.ReadFrame()
		if err != nil {
			return a, h2Error(f, bounded, a.unsent, err)
		}
		if _, ok := frame.(*http2.SettingsFrame); first && !ok {
			return a, errNotH2
		}
		done, err := a.take(f, frame, limit, want)
		if done || err != nil {
			return a, err
		}
	}
}

// take takes one frame into account. done says that the answer is complete.
func (a *h2Answer) take(f *http2.Framer, frame http2.Frame, limit int, want func(h2Answer) bool) (done bool, err error) {
	switch frame := frame.(type) {
	case *http2.SettingsFrame:
		if !frame.IsAck() {
			a.unsent = cmp.Or(a.unsent, f.WriteSettingsAck())
		}
	case *http2.PingFrame:
		if !frame.IsAck() {
			a.unsent = cmp.Or(a.unsent, f.WritePing(true, frame.Data))
		}
	case *http2.GoAwayFrame:
		if frame.LastStreamID < h2Stream || frame.ErrCode != http2.ErrCodeNo {
			return false, fmt.Errorf("GOAWAY %v %q", frame.ErrCode, quote(string(frame.DebugData())))
		}
	case *http2.RSTStreamFrame:
		return false, fmt.Errorf("RST_STREAM %v", frame.ErrCode)
	case *http2.PushPromiseFrame:
		return false, errors.New("PUSH_PROMISE, though it is switched off")
	case *http2.MetaHeadersFrame:
		switch {
		case frame.StreamID != h2Stream:
			return false, fmt.Errorf("an answer to stream %d", frame.StreamID)
		case frame.Truncated:
			return false, errHeaderSize
		case a.header != nil: // of the trailer, which ends the stream
			a.trailer = slices.Clone(frame.Fields)
			return true, nil
		}
		next := h2Answer{header: slices.Clone(frame.Fields), unsent: a.unsent}
		code, err := next.status()
		if err != nil {
			return false, err
		}
		if code/100 == 1 && !frame.StreamEnded() {
			return false, nil
		}
		*a = next
		return frame.StreamEnded() || !want(*a), nil
	case *http2.DataFrame:
		switch {
		case frame.StreamID != h2Stream || a.header == nil:
			return false, errors.New("DATA before a header")
		case len(a.body)+len(frame.Data()) > limit:
			a.body = append(a.body, frame.Data()[:limit-len(a.body)]...)
			a.cut = true
			return true, nil
		}
		a.body = append(a.body, frame.Data()...)
		return frame.StreamEnded(), nil
	}
	return false, nil
}

// h2Error tells what ended the reading.
func h2Error(f *http2.Framer, from *reader, unsent, err error) error {
	switch {
	case from.err != nil && unsent != nil:
		return unsent
	case from.err != nil:
		return from.err
	}
	if detail := f.ErrorDetail(); detail != nil {
		return fmt.Errorf("%w: %w", err, detail)
	}
	return err
}

// requestError is one that occurred while the request was sent.
type requestError struct{ err error }

func (e requestError) Error() string { return e.err.Error() }
func (e requestError) Unwrap() error { return e.err }

// ask2 asks by HTTP/2.
func (p *HTTP) ask2(ctx context.Context, x exchange, conn io.ReadWriter) (res healthcheck.Result, code int, location string) {
	fields := append([]hpack.HeaderField{
		{Name: ":method", Value: x.method},
		{Name: ":scheme", Value: x.scheme},
		{Name: ":authority", Value: x.host},
		{Name: ":path", Value: x.uri},
	}, p.fields(x)...)
	limit := p.cfg.Body.limit() + 1
	request, err := h2Request(fields, nil, limit)
	if err != nil {
		return failed(ctx, phaseRequest, p.expected(x), err), 0, ""
	}
	a, err := h2Exchange(conn, request, limit, func(a h2Answer) bool {
		code, _ := a.status() // is valid by then
		return p.cfg.Status.Has(code) && !p.cfg.Body.any()
	})
	if a.header == nil {
		phase := phaseAnswer
		if errors.As(err, new(requestError)) {
			phase = phaseRequest
		}
		return failed(ctx, phase, p.expected(x), err), 0, ""
	}
	code, _ = a.status()
	status := strings.TrimSpace(fmt.Sprint(code, " ", http.StatusText(code)))
	return p.judge(ctx, x, answer{code, status, a.value("location"), func(int) ([]byte, error) { return a.body, err }})
}
