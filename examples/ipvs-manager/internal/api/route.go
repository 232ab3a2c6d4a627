package api

import (
	"net/http"
	"slices"
	"strings"
)

// methods serves one path, by method. Others get a problem that lists what is
// allowed, which http.ServeMux would answer in plain text.
type methods map[string]http.HandlerFunc

func (m methods) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	method := r.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	if h, ok := m[method]; ok {
		h(w, r)
		return
	}
	allow := []string{http.MethodOptions}
	for name := range m {
		allow = append(allow, name)
		if name == http.MethodGet {
			allow = append(allow, http.MethodHead)
		}
	}
	slices.Sort(allow)
	list := strings.Join(allow, ", ")
	if r.Method == http.MethodOptions {
		w.Header().Set("Allow", list)
		if m[http.MethodPatch] != nil {
			w.Header().Set("Accept-Patch", strings.Join(patchMedia, ", "))
		}
		w.WriteHeader(http.StatusNoContent)
		return
	}
	p := refused(http.StatusMethodNotAllowed, r.Method+" is not possible here; allowed: "+list)
	p.allow = list
	p.send(w, r)
}
