package lbstate

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ImportNote says what an importer could not carry over, or what of it the
// state would refuse.
type ImportNote struct {
	Line   int    `json:"line"` // of the source, from 1 on
	Found  string `json:"found"`
	Reason string `json:"reason"`
}

func (n ImportNote) String() string { return fmt.Sprintf("line %d: %s: %s", n.Line, n.Found, n.Reason) }

// maxImportBytes bounds what an importer reads.
const maxImportBytes = 16 << 20

// importer collects services and what is to be said of them.
type importer struct {
	services []Service
	names    map[string]bool // of services
	lines    []int           // of each service
	notes    []ImportNote
}

func (im *importer) note(line int, found, reason string) {
	im.notes = append(im.notes, ImportNote{Line: line, Found: clip(found), Reason: reason})
}

// tooLong notes an input beyond the bound, of which nothing is read.
func (im *importer) tooLong(data []byte) bool {
	if len(data) <= maxImportBytes {
		return false
	}
	im.note(1, fmt.Sprintf("%d bytes", len(data)), fmt.Sprintf("at most %d are read", maxImportBytes))
	return true
}

// add begins a service, unless there is one with the same listener.
func (im *importer) add(line int, s Service) *Service {
	if im.names[s.Name] {
		im.note(line, s.Name, "stands twice; this one is left out")
		return nil
	}
	if im.names == nil {
		im.names = map[string]bool{}
	}
	im.names[s.Name] = true
	im.services = append(im.services, s)
	im.lines = append(im.lines, line)
	return &im.services[len(im.services)-1]
}

// result fills the defaults in, and validates what was carried over.
func (im *importer) result() (Configuration, []ImportNote) {
	for i, s := range im.services {
		s = s.WithDefaults()
		im.services[i] = s
		for _, f := range faultsOf(s.Validate()) {
			im.note(im.lines[i], s.Name, "would be refused: "+f.String())
		}
	}
	slices.SortFunc(im.notes, func(a, b ImportNote) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Found, b.Found), cmp.Compare(a.Reason, b.Reason))
	})
	// A block that stands for several services is read once for each.
	return Configuration{Services: im.services}, slices.Compact(im.notes)
}

// importName names a service after its listener.
func importName(s Service) string {
	if s.FWMark != 0 {
		return fmt.Sprintf("fwmark-%d-%s", s.FWMark, s.Family)
	}
	return fmt.Sprintf("%s-%s-%d", s.Protocol, strings.Trim(strings.ReplaceAll(s.VIP.String(), ":", "-"), "-"), s.Port)
}

// prefixLength reads a netmask, or a length.
func prefixLength(text string) (int, error) {
	if n, err := strconv.Atoi(text); err == nil {
		return n, nil
	}
	mask, err := netip.ParseAddr(text)
	if err != nil || !mask.Is4() {
		return 0, fmt.Errorf("is neither a netmask nor a length")
	}
	n, zero := 0, false
	for _, b := range mask.AsSlice() {
		for bit := 7; bit >= 0; bit-- {
			switch one := b>>bit&1 == 1; {
			case one && zero:
				return 0, fmt.Errorf("is a netmask with holes")
			case one:
				n++
			default:
				zero = true
			}
		}
	}
	return n, nil
}

func seconds(text string) (Duration, error) {
	n, err := strconv.ParseFloat(text, 64)
	if err != nil || !(n >= 0 && n <= 1e7) {
		return 0, fmt.Errorf("is not a number of seconds")
	}
	return Duration(n * float64(time.Second)), nil
}
