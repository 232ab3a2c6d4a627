package imports

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/ipvskit/ipvskit/"

// mayImport says which siblings a folder's packages may import, subfolders
// included. A package may always import what lies below its own folder.
// The longest matching folder decides.
var mayImport = map[string][]string{
	"raftstore":            {},
	"raftstore/formation":  {"raftstore"},
	"lbstate":              {},
	"lbstate/access":       {"lbstate"},
	"reconcile":            {"lbstate"},
	"healthcheck":          {},
	"healthcheck/lbchecks": {"healthcheck", "lbstate"},
	"transport/peer":       {},
	"transport/identity":   {},
	"transport/agent":      {"lbstate"},
	"examples":             {"*"},
	"internal":             {"*"},
}

// banned names modules that may be imported from some folders only.
var banned = []struct {
	prefix  string
	folders []string
	reason  string
}{
	{"google.golang.org/grpc", []string{"transport/agent", "examples"}, "who does not talk to agents should not link gRPC"},
	{"github.com/mdlayher/", []string{"reconcile"}, "netlink stays where the kernel is programmed"},
	{"github.com/jsimonetti/rtnetlink", []string{"reconcile"}, "netlink stays where the kernel is programmed"},
	{"github.com/cloudflare/ipvs", []string{"reconcile"}, "netlink stays where the kernel is programmed"},
	{"github.com/coreos/go-iptables", []string{"reconcile"}, "iptables stays where the kernel is programmed"},
	{"go.etcd.io/raft", []string{"raftstore", "transport/peer", "internal"}, "raft is raftstore's, and its transport's"},
	{"go.etcd.io/bbolt", []string{"raftstore", "lbstate", "examples", "internal"}, "the database is the state machines'"},
	{"github.com/spf13/", []string{"examples"}, "flags belong to programs"},
	{"github.com/prometheus/", []string{"examples"}, "metrics cross a typed interface; the adapter lives beside the server"},
	{"github.com/chromedp/", []string{"examples"}, "a browser is for tests of the page"},
}

func TestImportDiagram(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if d.IsDir() {
			// Nested modules carry what an importer never pays for.
			if rel != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata" || exists(filepath.Join(path, "go.mod"))) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		files++
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		// A test outside its package may wire real siblings together.
		external := strings.HasSuffix(f.Name.Name, "_test")
		for _, spec := range f.Imports {
			check(t, filepath.ToSlash(rel), strings.Trim(spec.Path.Value, `"`), external)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 {
		t.Fatalf("only %d Go files seen below %s: the walk is broken", files, root)
	}
}

func check(t *testing.T, file, imported string, external bool) {
	t.Helper()
	folder := filepath.ToSlash(filepath.Dir(file))
	if sibling, ok := strings.CutPrefix(imported, module); ok {
		own, allowed := rule(folder)
		switch {
		case folder == ".":
			t.Errorf("%s: the root package is documentation alone; it imports %s", file, imported)
		case own == "":
			t.Errorf("%s: folder has no rule in the import diagram", file)
		case within(sibling, own), slices.Contains(allowed, "*"), external:
		case slices.ContainsFunc(allowed, func(a string) bool { return within(sibling, a) }):
		default:
			t.Errorf("%s: %s may import %v, not %s", file, own, allowed, sibling)
		}
		return
	}
	for _, b := range banned {
		if strings.HasPrefix(imported, b.prefix) && !slices.ContainsFunc(b.folders, func(f string) bool { return within(folder, f) }) {
			t.Errorf("%s: imports %s, which only %v may: %s", file, imported, b.folders, b.reason)
		}
	}
}

func rule(folder string) (own string, allowed []string) {
	for name, a := range mayImport {
		if within(folder, name) && len(name) > len(own) {
			own, allowed = name, a
		}
	}
	return own, allowed
}

func within(folder, parent string) bool {
	return folder == parent || strings.HasPrefix(folder, parent+"/")
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
