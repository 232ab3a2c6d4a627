package lbstate

import (
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Limits of one health check.
const (
	maxRegexp = 1024
	maxText   = 2048 // URL, path
	minCheck  = 10 * time.Millisecond
	maxCheck  = time.Hour
)

// Validate names every fault of a shared check whose defaults are filled in.
func (c SharedCheck) Validate() error {
	var f faults
	f.name("name", c.Name)
	f.text("notes", c.Notes, maxNotes)
	if c.Check.Use != "" {
		f.add("check.use", c.Check.Use, "", "a shared check cannot use another")
	} else {
		c.Check.validate(&f, "check")
	}
	return f.err()
}

func (c *HealthCheck) validate(f *faults, path string) {
	if c == nil {
		return
	}
	if c.Use != "" {
		f.name(path+".use", c.Use)
		if (*c != HealthCheck{Use: c.Use}) {
			f.add(path+".use", c.Use, "use alone", "a check that uses a shared one says nothing itself")
		}
		return
	}
	f.lasts(path+".interval", c.Interval, minCheck, maxCheck)
	f.lasts(path+".down_interval", c.DownInterval, minCheck, maxCheck)
	f.lasts(path+".timeout", c.Timeout, minCheck, maxCheck)
	f.between(path+".rise", c.Rise, 1, 100)
	f.between(path+".fall", c.Fall, 1, 100)
	f.between(path+".port", c.Port, 0, 65535)
	oneOf(f, path+".initial", c.Initial, InitialDown, InitialUp)
	only := func(name string, set bool, kind string) {
		if set && c.Type != kind {
			f.add(path+"."+name, "", "", "goes with type "+kind+" alone")
		}
	}
	only("address", c.Address.IsValid(), "tcp")
	only("path", c.Path != "", "http")
	only("host", c.Host != "", "http")
	only("url", c.URL != "", "http")
	only("expect_status", c.ExpectStatus != "", "http")
	only("expect_body", c.ExpectBody != "", "http")
	switch c.Type {
	case "tcp":
		if c.Address.IsValid() {
			if c.Address.Zone() != "" || c.Address.IsUnspecified() || c.Address.IsMulticast() {
				f.add(path+".address", c.Address, "a unicast address", "cannot be dialed")
			}
		}
	case "http":
		c.validateHTTP(f, path)
	default:
		f.add(path+".type", c.Type, "tcp, http", fmt.Sprintf("%q is not known", clip(c.Type)))
	}
}

func (c *HealthCheck) validateHTTP(f *faults, path string) {
	switch {
	case c.Path == "" && c.URL == "":
		f.add(path, "", "path or url", "an http check needs one of them")
	case c.Path != "" && c.URL != "":
		f.add(path+".url", c.URL, "path or url", "only one of them may be given")
	case c.URL != "":
		u, err := url.Parse(c.URL)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || len(c.URL) > maxText {
			f.add(path+".url", c.URL, "http://… or https://…", "is not an absolute URL")
		}
		if c.Port != 0 || c.Host != "" {
			f.add(path+".url", c.URL, "", "port and host go with path; a url has its own")
		}
	default:
		if _, err := url.ParseRequestURI(c.Path); err != nil || !strings.HasPrefix(c.Path, "/") || len(c.Path) > maxText {
			f.add(path+".path", c.Path, "starts with /", "is not a path")
		}
		if strings.ContainsAny(c.Host, " /\r\n\t") || len(c.Host) > 255 {
			f.add(path+".host", c.Host, "a host name", "is not a host")
		}
	}
	if _, err := ParseStatusRanges(c.ExpectStatus); err != nil {
		f.add(path+".expect_status", c.ExpectStatus, `such as "200-299" or "200,204"`, err.Error())
	}
	if len(c.ExpectBody) > maxRegexp {
		f.add(path+".expect_body", fmt.Sprintf("%d bytes", len(c.ExpectBody)), fmt.Sprintf("at most %d", maxRegexp), "is too long")
	} else if _, err := regexp.Compile(c.ExpectBody); err != nil {
		f.add(path+".expect_body", c.ExpectBody, "a regular expression (RE2)", err.Error())
	}
}

// ParseStatusRanges reads "200-299,304" into pairs of lowest and highest.
func ParseStatusRanges(text string) ([][2]int, error) {
	var ranges [][2]int
	for part := range strings.SplitSeq(text, ",") {
		lo, hi, isRange := strings.Cut(strings.TrimSpace(part), "-")
		a, err := strconv.Atoi(lo)
		b := a
		if err == nil && isRange {
			b, err = strconv.Atoi(hi)
		}
		if err != nil || a < 100 || b > 599 || a > b {
			return nil, fmt.Errorf("%q is not a status from 100 to 599, nor a range of them", part)
		}
		ranges = append(ranges, [2]int{a, b})
	}
	return ranges, nil
}

// slow warns of a check whose failure outlasts its interval.
func (f *faults) slow(path string, c *HealthCheck) {
	if c != nil && c.Timeout > c.Interval {
		f.add(path+".timeout", time.Duration(c.Timeout), "", fmt.Sprintf("is longer than the interval, %v: a check that times out delays the next", time.Duration(c.Interval)))
	}
}
