package api

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/ipvskit/ipvskit/lbstate"
)

const (
	maxImport = 1 << 20
	mediaText = "text/plain"
)

var importers = map[string]func([]byte) (lbstate.Configuration, []lbstate.ImportNote){
	"ipvsadm":    lbstate.ImportIPVSADM,
	"keepalived": lbstate.ImportKeepalived,
}

type imported struct {
	Configuration lbstate.Configuration `json:"configuration"`
	Notes         []lbstate.ImportNote  `json:"notes"` // what could not be carried over, by line
}

// importText turns what another program says into a configuration, and writes
// nothing: a plan takes the configuration. ?view=config leaves the notes out.
func (a *API) importText(w http.ResponseWriter, r *http.Request) {
	from, ok := importers[r.PathValue("format")]
	if !ok {
		refused(http.StatusNotFound, fmt.Sprintf("format %.100q is not known; allowed: %s", r.PathValue("format"),
			strings.Join(slices.Sorted(maps.Keys(importers)), ", "))).send(w, r)
		return
	}
	config, p := asConfig(r)
	if p != nil {
		p.send(w, r)
		return
	}
	done, p := a.place()
	if p != nil {
		p.send(w, r)
		return
	}
	defer done()
	body, p := readText(w, r, maxImport, mediaText)
	if p != nil {
		p.send(w, r)
		return
	}
	c, notes := from(body)
	if config {
		send(w, r, http.StatusOK, c)
		return
	}
	send(w, r, http.StatusOK, imported{c, listed(notes)})
}
