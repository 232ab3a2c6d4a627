package web

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestFiles(t *testing.T) {
	mux := http.NewServeMux()
	if err := Register(mux); err != nil {
		t.Fatal(err)
	}
	ask := func(method, path string, headers ...string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, path, nil)
		for _, h := range headers {
			name, value, _ := strings.Cut(h, ": ")
			r.Header.Set(name, value)
		}
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, r)
		return w
	}
	for path, typ := range map[string]string{
		"/": "text/html", "/app.js": "text/javascript", "/dom.js": "text/javascript", "/editor.js": "text/javascript", "/history.js": "text/javascript",
		"/app.css": "text/css", "/favicon.svg": "image/svg+xml",
	} {
		resp := ask(http.MethodGet, path)
		h := resp.Header()
		if resp.Code != http.StatusOK || !strings.HasPrefix(h.Get("Content-Type"), typ) || h.Get("Cache-Control") != "no-cache" || h.Get("Content-Security-Policy") != policy {
			t.Errorf("%s: %d, %v", path, resp.Code, h)
		}
		if again := ask(http.MethodGet, path, "If-None-Match: "+h.Get("ETag")); again.Code != http.StatusNotModified {
			t.Errorf("%s: %d of what the browser has", path, again.Code)
		}
		if post := ask(http.MethodPost, path); post.Code != http.StatusMethodNotAllowed || post.Header().Get("Allow") != "GET, HEAD" {
			t.Errorf("POST %s: %d, %v", path, post.Code, post.Header())
		}
	}
	for _, path := range []string{"/index.html", "/static/app.js", "/app.js/", "/../web.go"} {
		if resp := ask(http.MethodGet, path); resp.Code == http.StatusOK {
			t.Errorf("%s is served", path)
		}
	}
}

// The policy must not need exceptions: no inline scripts, styles or handlers,
// and nothing from elsewhere.
func TestPageKeepsToItsPolicy(t *testing.T) {
	page, err := static.ReadFile("static/index.html")
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{" style=", " onclick=", " onload=", "<style", "<script>", "javascript:", "//"} {
		if strings.Contains(strings.ToLower(string(page)), bad) {
			t.Errorf("index.html has %q", bad)
		}
	}
}
