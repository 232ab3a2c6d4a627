package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

const (
	maxBody   = 1 << 20
	mediaJSON = "application/json"
	mediaYAML = "application/yaml"
	// mediaPatch is JSON Merge Patch, of RFC 7396; as YAML it has no name of its
	// own.
	mediaPatch = "application/merge-patch+json"
)

// readBody reads the body of a write, which must be JSON or YAML.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, *problem) {
	return readText(w, r, maxBody, mediaJSON, mediaYAML)
}

// readText reads a body of at most so many bytes, of one of the media types.
// That the type must be named also keeps out forms and beacons of foreign pages.
func readText(w http.ResponseWriter, r *http.Request, most int64, media ...string) ([]byte, *problem) {
	typ, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	charset := strings.ToLower(params["charset"])
	if err != nil || !slices.Contains(media, typ) || charset != "" && charset != "utf-8" {
		p := refused(http.StatusUnsupportedMediaType,
			fmt.Sprintf("Content-Type is %q; allowed: %s, in UTF-8", r.Header.Get("Content-Type"), strings.Join(media, ", ")))
		p.accept = strings.Join(media, ", ")
		return nil, p
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, most))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, refused(http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", tooLarge.Limit))
	case err != nil:
		return nil, refused(http.StatusBadRequest, "the body ended early: "+err.Error())
	}
	if typ == mediaJSON || strings.HasSuffix(typ, "+json") {
		// YAML is a superset: without this, YAML that is called JSON would pass.
		if !json.Valid(data) {
			return nil, refused(http.StatusBadRequest, syntaxFault(data))
		}
		return respell(data), nil
	}
	return data, nil
}

// respell writes the strings of valid JSON so that a YAML decoder reads them
// too: it does not know \/ nor surrogate pairs, as in "\ud83d\ude00", which
// many encoders make of whatever is not ASCII, and refuses DEL.
func respell(data []byte) []byte {
	if !bytes.ContainsAny(data, "\\\x7f") {
		return data
	}
	out := make([]byte, 0, len(data)+len(data)/8)
	for i := 0; i < len(data); {
		if data[i] != '"' {
			out = append(out, data[i])
			i++
			continue
		}
		end := i + 1
		for ; data[end] != '"'; end++ {
			if data[end] == '\\' {
				end++
			}
		}
		end++
		var text string
		if err := json.Unmarshal(data[i:end], &text); err != nil {
			return data // not valid after all: the decoder says what is wrong
		}
		spelled, _ := json.Marshal(text) // of a string it cannot fail
		out = append(out, bytes.ReplaceAll(spelled, []byte{0x7f}, []byte(`\u007f`))...)
		i = end
	}
	return out
}

func syntaxFault(data []byte) string {
	if len(bytes.TrimSpace(data)) == 0 {
		return "the body is empty"
	}
	var v any
	err := json.Unmarshal(data, &v)
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		at := min(int(syntax.Offset), len(data))
		line := 1 + bytes.Count(data[:at], []byte("\n"))
		column := at - bytes.LastIndexByte(data[:at], '\n') - 1
		return fmt.Sprintf("not JSON, at line %d, column %d: %v", line, column, err)
	}
	return fmt.Sprintf("not JSON: %v", err)
}

// send answers with v, as YAML to those who prefer it.
func send(w http.ResponseWriter, r *http.Request, status int, v any) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	inYAML := wantsYAML(r)
	if !inYAML { // which would read the spaces again, slowly
		enc.SetIndent("", "  ")
	}
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	typ, data := mediaJSON, buf.Bytes()
	if err == nil && inYAML {
		typ = mediaYAML
		data, err = yaml.JSONToYAML(data)
	}
	if err != nil {
		refused(http.StatusInternalServerError, "encode the answer: "+err.Error()).send(w, r)
		return
	}
	w.Header().Set("Content-Type", typ)
	w.Header().Add("Vary", "Accept")
	w.WriteHeader(status)
	_, _ = w.Write(data) // fails only when the client is gone
}

// wantsYAML says whether YAML is named in Accept and JSON is not.
func wantsYAML(r *http.Request) bool {
	accept := r.Header.Get("Accept")
	return strings.Contains(accept, mediaYAML) && !strings.Contains(accept, mediaJSON)
}
