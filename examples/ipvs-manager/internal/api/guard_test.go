package api

import (
	"net/http"
	"strings"
	"testing"
)

// DNS rebinding: a page of another name, which resolves to this server, is
// refused whatever it asks.
func TestHostsThatAreKnown(t *testing.T) {
	w := newWorld(t)
	for host, known := range map[string]bool{
		"127.0.0.1": true, "127.0.0.1:8010": true, "[::1]:8010": true, "[::1]": true, "192.0.2.7:8010": true, "[fe80::1%25eth0]:80": true,
		"localhost": true, "LOCALHOST:8010": true, "localhost.:80": true,
		"lb.example": true, "LB.example:8010": true, "lb.example.": true,
		"evil.example": false, "lb.example.evil.example": false, "evil.lb.example": false, "localhost.evil.example": false,
		"127.0.0.1.evil.example": false, "127.0.0.1:8010.evil.example": false, "0x7f.1": false, "2130706433": false, "": true,
	} {
		for _, path := range []string{"/api/v1/services", "/healthz", "/nothing"} {
			a := w.do(http.MethodGet, path, "", "Host: "+host)
			if host == "" {
				continue // the client puts its own
			}
			if refused := a.status == http.StatusMisdirectedRequest; refused == known {
				t.Errorf("%s of %q: %d", path, host, a.status)
			}
			if !known {
				if p := a.problem(http.StatusMisdirectedRequest); p.Type != typeForeign || !strings.Contains(p.Detail, "--http_names") {
					t.Errorf("%v", p)
				}
			}
		}
	}
}

// Cross-site requests may not change anything.
func TestForeignPages(t *testing.T) {
	w := newWorld(t)
	own := w.server.URL
	for _, test := range []struct {
		headers []string
		allowed bool
	}{
		{nil, true}, // not a browser
		{[]string{"Sec-Fetch-Site: same-origin"}, true},
		{[]string{"Sec-Fetch-Site: none"}, true},
		{[]string{"Origin: " + own}, true}, // an old browser
		{[]string{"Sec-Fetch-Site: cross-site"}, false},
		{[]string{"Sec-Fetch-Site: same-site"}, false}, // another port of this host
		{[]string{"Sec-Fetch-Site: cross-site", "Origin: " + own}, false},
		{[]string{"Origin: http://evil.example"}, false},
		{[]string{"Origin: null"}, false},
	} {
		for _, write := range []answer{
			w.do(http.MethodPut, "/api/v1/services/web", web, test.headers...),
			w.do(http.MethodDelete, "/api/v1/services/web", "", test.headers...),
			w.do(http.MethodPost, "/api/v1/cluster/members", joining, test.headers...),
		} {
			if (write.status == http.StatusForbidden) == test.allowed {
				t.Errorf("%s with %v: %d", write.request, test.headers, write.status)
			}
			if !test.allowed {
				if p := write.problem(http.StatusForbidden); p.Type != typeForeign {
					t.Errorf("%v", p)
				}
			}
		}
		// Reading is harmless: the page cannot see the answer.
		a := w.do(http.MethodGet, "/api/v1/services", "", test.headers...)
		a.ok(http.StatusOK, nil)
		if a.header.Get("Access-Control-Allow-Origin") != "" || a.header.Get("Cross-Origin-Resource-Policy") != "same-origin" {
			t.Errorf("%v", a.header)
		}
	}
}

func TestHeadersOfEveryAnswer(t *testing.T) {
	w := newWorld(t)
	for _, a := range []answer{w.do(http.MethodGet, "/api/v1/services", ""), w.do(http.MethodGet, "/nothing", ""), w.do(http.MethodGet, "/", "", "Host: evil.example")} {
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
			"Cross-Origin-Opener-Policy": "same-origin", "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
		} {
			if got := a.header.Get(name); got != want {
				t.Errorf("%s: %s is %q", a.request, name, got)
			}
		}
	}
}
