// Package web is the web page: static files, embedded, without a build step or
// anything fetched from elsewhere. The page reads the same API as everyone.
package web

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"mime"
	"net/http"
	"path"
)

//go:embed static
var static embed.FS

// policy allows what the page consists of and nothing else.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// Register adds the page's files to mux, the page itself at "/".
func Register(mux *http.ServeMux) error {
	files, err := fs.Glob(static, "static/*")
	if err != nil {
		return err
	}
	for _, name := range files {
		data, err := static.ReadFile(name)
		if err != nil {
			return err
		}
		typ := mime.TypeByExtension(path.Ext(name))
		if typ == "" {
			return fmt.Errorf("web: no media type for %s", name)
		}
		url := "/" + path.Base(name)
		if url == "/index.html" {
			url = "/{$}"
		}
		mux.Handle(url, file(typ, data))
	}
	return nil
}

func file(typ string, data []byte) http.Handler {
	sum := sha256.Sum256(data)
	tag := `"` + hex.EncodeToString(sum[:8]) + `"`
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			http.Error(w, r.Method+" is not possible here; allowed: GET, HEAD. The API is at /api/v1", http.StatusMethodNotAllowed)
			return
		}
		h.Set("Content-Security-Policy", policy)
		h.Set("Content-Type", typ)
		h.Set("Cache-Control", "no-cache") // kept, but asked for again each time: cheap, and never a mixture of versions
		h.Set("ETag", tag)
		if r.Header.Get("If-None-Match") == tag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		_, _ = w.Write(data) // fails only when the client is gone
	})
}
