package api

import (
	"net/http"
	"strings"
	"testing"

	"github.com/ipvskit/ipvskit/lbstate"
)

const (
	saved = "-A -t 192.0.2.10:80 -s wrr\n-a -t 192.0.2.10:80 -r 10.1.0.1:8080 -m -w 5\n-A -t 192.0.2.11:80 -s best\n"
	kept  = "virtual_server 192.0.2.10 80 {\n lb_algo wrr\n lb_kind NAT\n protocol TCP\n real_server 10.1.0.1 8080 {\n  weight 5\n }\n}\nvrrp_instance x {\n}\n"
)

// What is imported can be planned and applied, and the notes say what is not.
func TestImport(t *testing.T) {
	for format, text := range map[string]string{"ipvsadm": saved, "keepalived": kept} {
		t.Run(format, func(t *testing.T) {
			w := newWorld(t)
			path := "/api/v1/import/" + format
			var in imported
			a := w.do(http.MethodPost, path, text, "Content-Type: "+mediaText)
			a.ok(http.StatusOK, &in)
			if len(in.Configuration.Services) == 0 || len(in.Notes) != 1 || in.Notes[0].Line == 0 {
				t.Fatalf("%s", a.body)
			}
			good := strings.Split(text, map[string]string{"ipvsadm": "-A -t 192.0.2.11", "keepalived": "vrrp"}[format])[0]
			a = w.do(http.MethodPost, path+"?view=config", good, "Content-Type: "+mediaText, "Accept: "+mediaYAML)
			p := w.plan("?prune=true", string(a.body))
			if len(p.Steps) != 1 {
				t.Fatalf("%+v of\n%s", p, a.body)
			}
			var res lbstate.BatchResult
			w.do(http.MethodPost, "/api/v1/apply?prune=true&hash="+p.Hash, string(a.body), "Content-Type: "+mediaYAML).ok(http.StatusOK, &res)
			var list serviceList
			w.do(http.MethodGet, "/api/v1/services", "").ok(http.StatusOK, &list)
			if len(list.Services) != 1 || list.Services[0].Scheduler != "wrr" || list.Services[0].Backends[0].EffectiveWeight != 5 {
				t.Errorf("%+v", list)
			}

			w.do(http.MethodPost, path, "", "Content-Type: "+mediaText).ok(http.StatusOK, &in)
			if in.Notes == nil {
				t.Error("no notes are null")
			}
			w.do(http.MethodPost, path+"?view=x", text, "Content-Type: "+mediaText).problem(http.StatusBadRequest)
			w.do(http.MethodPost, path, text).problem(http.StatusUnsupportedMediaType)
			w.do(http.MethodPost, path, strings.Repeat("#", maxImport+1), "Content-Type: "+mediaText).problem(http.StatusRequestEntityTooLarge)
		})
	}
	w := newWorld(t)
	if p := w.do(http.MethodPost, "/api/v1/import/haproxy", "x", "Content-Type: "+mediaText).problem(http.StatusNotFound); !strings.Contains(p.Detail, "ipvsadm, keepalived") {
		t.Errorf("%v", p)
	}
	for range maxReading {
		w.api.reading <- struct{}{}
	}
	w.do(http.MethodPost, "/api/v1/import/ipvsadm", saved, "Content-Type: "+mediaText).problem(http.StatusServiceUnavailable)
}
