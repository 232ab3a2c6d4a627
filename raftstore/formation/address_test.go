package formation

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestNormalize(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.1:8010":               "192.0.2.1:8010",
		" 192.0.2.1:08010 ":            "192.0.2.1:8010",
		"http://192.0.2.1:8010/":       "192.0.2.1:8010",
		"https://Node-1.Example.:443":  "node-1.example:443",
		"[2001:DB8:0:0:0:0:0:1]:8010":  "[2001:db8::1]:8010",
		"[::ffff:192.0.2.1]:8010":      "192.0.2.1:8010",
		"[fe80::1%eth0]:8010":          "[fe80::1%eth0]:8010",
		"localhost:1":                  "localhost:1",
		"192.0.2.1":                    "",
		"":                             "",
		":8010":                        "",
		"0.0.0.0:8010":                 "",
		"[::]:8010":                    "",
		"224.0.0.1:8010":               "",
		"2001:db8::1:8010":             "",
		"host:http":                    "",
		"host:0":                       "",
		"..:1":                         "",
		"a..b:1":                       "",
		".a:1":                         "",
		"host:65536":                   "",
		"ho st:80":                     "",
		"host/path:80":                 "",
		"user@host:80":                 "",
		"http://host:80/path":          "",
		"host:80,other:80":             "",
		"ftp://192.0.2.1:80":           "",
		"http://http://192.0.2.1:8010": "",
	} {
		got, err := normalize(in)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("normalize(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestNormalizeIsIdempotent(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-zA-Z0-9.\[\]:%-]{1,12}:[0-9]{1,6}`)).Draw(t, "in")
		once, err := normalize(in)
		if err != nil {
			return
		}
		if twice, err := normalize(once); err != nil || twice != once {
			t.Fatalf("%q became %q, then %q, %v", in, once, twice, err)
		}
	})
}

func TestListsAreEqualWhateverTheirOrder(t *testing.T) {
	a, err := normalizeList([]string{"B:2", "[::1]:1", "192.0.2.1:1", "b:2"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := normalizeList([]string{"192.0.2.1:1", "b:2", "[0::1]:1"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(a, b) || len(a) != 3 {
		t.Errorf("%v and %v", a, b)
	}
}

func FuzzNormalize(f *testing.F) {
	f.Add("http://[::1%lo]:80/")
	f.Fuzz(func(_ *testing.T, in string) { _, _ = normalize(in) })
}
