package page

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// browser is the Chromium that TestMain starts. Each test has a tab of its own.
var browser context.Context

func startBrowser(dir string) (context.CancelFunc, error) {
	path, err := exec.LookPath("chromium")
	if err != nil {
		return nil, fmt.Errorf("the page is tested in Chromium: apt-get install chromium (%w)", err)
	}
	options := []chromedp.ExecAllocatorOption{chromedp.ExecPath(path), chromedp.UserDataDir(dir), chromedp.Headless, chromedp.NoSandbox}
	// The page's own traffic alone: no updates, no telemetry. Shared memory is
	// too small in containers.
	for _, flag := range []string{
		"disable-gpu", "disable-quic", "no-first-run", "no-default-browser-check", "disable-background-networking",
		"disable-component-update", "disable-sync", "disable-default-apps", "disable-dev-shm-usage", "disable-breakpad",
		"disable-background-timer-throttling", "disable-renderer-backgrounding", "disable-backgrounding-occluded-windows",
	} {
		options = append(options, chromedp.Flag(flag, true))
	}
	allocator, cancelAllocator := chromedp.NewExecAllocator(context.Background(), options...)
	var cancel context.CancelFunc
	browser, cancel = chromedp.NewContext(allocator)
	if err := chromedp.Do(browser); err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	return func() { cancel(); cancelAllocator() }, nil
}

// tab is one tab of the browser.
type tab struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	errors   []string // what the console showed as an error
	expected []string // parts of errors that are the test's own doing
}

func open(t *testing.T, m *manager) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(browser)
	// While a leader is elected nobody answers for the checks; the page asks again.
	p := &tab{t: t, ctx: ctx, expected: []string{"/api/v1/health"}}
	t.Cleanup(func() {
		p.check()
		cancel()
	})
	if err := chromedp.Listen(ctx, p.event); err != nil {
		t.Fatal(err)
	}
	p.do(chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Call(ctx, runtime.Enable, struct{}{})
		return err
	}))
	p.desktop("light")
	p.do(chromedp.Navigate(m.url + "/"))
	p.hears()
	return p
}

// event collects what a console would show in red. It is called in the order
// in which things happen, before the command that follows them returns.
func (p *tab) event(event any) {
	var text string
	switch e := event.(type) {
	case *log.EventEntryAdded:
		if e.Entry.Level == "error" || e.Entry.Level == "warning" {
			text = fmt.Sprintf("%s: %s: %s", e.Entry.Source, e.Entry.URL, e.Entry.Text)
		}
	case *runtime.EventConsoleAPICalled:
		if e.Type == "error" || e.Type == "warning" || e.Type == "assert" {
			var args []string
			for _, a := range e.Args {
				args = append(args, string(a.Value)+a.Description)
			}
			text = "console: " + strings.Join(args, " ")
		}
	case *runtime.EventExceptionThrown:
		text = "exception: " + e.ExceptionDetails.Text
		if e.ExceptionDetails.Exception != nil {
			text += " " + e.ExceptionDetails.Exception.Description
		}
	}
	if text != "" {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.errors = append(p.errors, text)
	}
}

// hears proves that an error, and what the policy forbids, would be noticed.
func (p *tab) hears() {
	p.t.Helper()
	p.eval(`(() => { console.error("canary"); const s = document.createElement("script"); s.textContent = "0"; document.head.append(s); s.remove(); })()`)
	eventually(p.t, "the console's errors are heard", func() (string, bool) {
		p.mu.Lock()
		defer p.mu.Unlock()
		all := strings.Join(p.errors, "\n")
		return all, strings.Contains(all, "canary") && strings.Contains(all, "Content Security Policy")
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	var others []string
	for _, e := range p.errors {
		if !strings.Contains(e, "canary") && !strings.Contains(e, "Executing inline script violates") {
			others = append(others, e)
		}
	}
	p.errors = others
}

// expect says which errors the test makes itself: a browser shows every
// answer of 400 and above, and every failed connection.
func (p *tab) expect(parts ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expected = append(p.expected, parts...)
}

func (p *tab) check() {
	p.mu.Lock()
	defer p.mu.Unlock()
next:
	for _, e := range p.errors {
		for _, part := range p.expected {
			if strings.Contains(e, part) {
				continue next
			}
		}
		p.t.Errorf("the console shows an error: %s", e)
	}
}

func (p *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		p.t.Fatal(err)
	}
}

// eval runs JavaScript and returns its value as JSON.
func (p *tab) eval(expression string) json.RawMessage {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	value, err := chromedp.Run(ctx, chromedp.Evaluate[[]byte](fmt.Sprintf("JSON.stringify(%s) ?? 'null'", expression)))
	if err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	var text string
	if err := json.Unmarshal(value, &text); err != nil {
		p.t.Fatalf("%s: %s: %v", expression, value, err)
	}
	return json.RawMessage(text)
}

func read[T any](p *tab, expression string) T {
	p.t.Helper()
	var v T
	if err := json.Unmarshal(p.eval(expression), &v); err != nil {
		p.t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// text is what a person sees of the first element that the selector names;
// empty if there is none.
func (p *tab) text(selector string) string {
	p.t.Helper()
	return read[string](p, fmt.Sprintf(`document.querySelector(%q)?.innerText ?? ""`, selector))
}

// table is what a person sees of a table's rows, cell by cell; the lines of a
// cell are joined by " | ". It is nil if there is no such table.
func (p *tab) table(caption string) [][]string {
	p.t.Helper()
	return read[[][]string](p, fmt.Sprintf(`(() => {
		const table = [...document.querySelectorAll("table")].find((t) => t.caption.textContent === %q);
		return table ? [...table.tBodies[0].rows].map((r) => [...r.cells].map((c) => c.innerText.replace(/\s*\n\s*/g, " | ").trim())) : null;
	})()`, caption))
}

// sees waits until the element's text contains all parts.
func (p *tab) sees(selector string, parts ...string) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("%s shows %q", selector, parts), func() (string, bool) {
		text := p.text(selector)
		for _, part := range parts {
			if !strings.Contains(text, part) {
				return text, false
			}
		}
		return text, true
	})
}

// row waits until a table's row has these cells; a cell of "*" may be anything,
// one that ends in "…" must begin so.
func (p *tab) row(caption string, index int, cells ...string) {
	p.t.Helper()
	eventually(p.t, fmt.Sprintf("row %d of %q is %q", index, caption, cells), func() (string, bool) {
		rows := p.table(caption)
		said := fmt.Sprintf("%q\neditor: %s", rows, p.text("#editor[open]"))
		if index >= len(rows) || len(rows[index]) != len(cells) {
			return said, false
		}
		for i, want := range cells {
			begin, open := strings.CutSuffix(want, "…")
			got := rows[index][i]
			if want != "*" && got != want && !(open && strings.HasPrefix(got, begin)) {
				return said, false
			}
		}
		return said, true
	})
}

// click presses the button of this text, below the element that the selector
// names, by a real event of the mouse.
func (p *tab) click(selector, text string) {
	p.t.Helper()
	button := fmt.Sprintf(`[...document.querySelectorAll(%q)].flatMap((e) => [...e.querySelectorAll("button")]).find((b) => b.innerText === %q)`, selector, text)
	eventually(p.t, fmt.Sprintf("%s has a button %q", selector, text), func() (string, bool) {
		return p.text(selector), read[bool](p, button+" !== undefined")
	})
	p.do(chromedp.Click(chromedp.JSPath(button)))
}

// write replaces the text of an input as typing would.
func (p *tab) write(selector, text string) {
	p.t.Helper()
	p.do(chromedp.Focus(chromedp.CSS(selector)))
	p.eval(fmt.Sprintf(`document.querySelector(%q).select()`, selector))
	p.do(chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		if text == "" {
			return chromedp.Do(ctx, chromedp.KeyEvent("\b"))
		}
		_, err := chromedp.Call(ctx, input.InsertText, input.InsertTextParams{Text: text})
		return err
	}))
}

func (p *tab) desktop(scheme string) { p.t.Helper(); p.look(1280, 900, scheme) }
func (p *tab) phone(scheme string) {
	p.t.Helper()
	p.look(390, 844, scheme, chromedp.EmulateMobile, chromedp.EmulateTouch)
}

func (p *tab) look(width, height int64, scheme string, options ...chromedp.EmulateViewportOption) {
	p.t.Helper()
	p.do(chromedp.EmulateViewport(width, height, options...), chromedp.Func(func(ctx context.Context, _ *chromedp.Target) error {
		_, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
			{Name: "prefers-color-scheme", Value: scheme},
			{Name: "prefers-reduced-motion", Value: "reduce"},
		}})
		return err
	}))
}

// shots looks at the page as it is now on a desktop and a phone, light and
// dark: nothing may overflow, and text must be readable against what is behind
// it. With PAGE_SHOTS it leaves a picture of each.
func (p *tab) shots(name string) {
	p.t.Helper()
	for _, scheme := range []string{"light", "dark"} {
		for _, size := range []string{"desktop", "phone"} {
			if size == "phone" {
				p.phone(scheme)
			} else {
				p.desktop(scheme)
			}
			for _, fault := range read[[]string](p, overflowing) {
				p.t.Errorf("%s, %s, %s: overflows: %s", name, size, scheme, fault)
			}
			for _, fault := range read[[]string](p, unreadable) {
				p.t.Errorf("%s, %s, %s: too little contrast: %s", name, size, scheme, fault)
			}
			if shots := os.Getenv("PAGE_SHOTS"); shots != "" {
				p.shot(filepath.Join(shots, fmt.Sprintf("%s-%s-%s.png", name, size, scheme)))
			}
		}
	}
	p.desktop("light")
}

func (p *tab) shot(path string) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, patience)
	defer cancel()
	png, err := chromedp.Run(ctx, chromedp.FullScreenshot(100))
	if err == nil {
		err = os.WriteFile(path, png, 0o600)
	}
	if err != nil {
		p.t.Error(err)
	}
}

// overflowing lists elements that stick out of the window or are cut off,
// other than inside something that scrolls.
const overflowing = `(() => {
	const faults = [];
	const width = document.documentElement.clientWidth;
	if (document.documentElement.scrollWidth > width) faults.push("the page is " + document.documentElement.scrollWidth + " wide, the window " + width);
	const scrolls = (e) => e && (["auto", "scroll"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
	for (const e of document.querySelectorAll("body *")) {
		const box = e.getBoundingClientRect();
		if (box.width < 2 || e.closest(".skip, .hidden, thead") || scrolls(e.parentElement)) continue;
		if (box.right > width + 1 || box.left < -1) faults.push(e.tagName + "." + e.className + " reaches from " + box.left + " to " + box.right + ": " + e.textContent.slice(0, 60));
		const style = getComputedStyle(e);
		if (e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0 && style.display !== "inline" && ["hidden", "clip"].includes(style.overflowX)) faults.push(e.tagName + "." + e.className + " cuts off " + e.textContent.slice(0, 60));
	}
	return faults;
})()`

// unreadable lists texts whose contrast is below WCAG 2.2's level AA
// (1.4.3: 4.5 to 1, for large text 3 to 1).
const unreadable = `(() => {
	const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
	const over = (color, [r, g, b]) => {
		canvas.fillStyle = "rgb(" + [r, g, b] + ")"; canvas.fillRect(0, 0, 1, 1);
		canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
		return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
	};
	const behind = (e) => over(getComputedStyle(e).backgroundColor, e.parentElement ? behind(e.parentElement) : [255, 255, 255]);
	const light = (rgb) => rgb.map((v) => v / 255).map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
	const faults = new Set();
	const open = document.querySelector("dialog[open]");
	for (const e of (open ?? document.body).querySelectorAll("*")) {
		const text = [...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.textContent.trim()).join("");
		if (!text || e.closest("[disabled]") || e.getBoundingClientRect().width < 2 || (!open && e.closest("dialog"))) continue;
		const style = getComputedStyle(e);
		const back = behind(e), front = over(style.color, back);
		const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
		const ratio = (a + .05) / (b + .05);
		const size = parseFloat(style.fontSize);
		const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
		if (ratio < (large ? 3 : 4.5)) faults.add(ratio.toFixed(2) + " to 1: " + e.tagName + "." + e.className + ": " + text.slice(0, 60));
	}
	return [...faults];
})()`
