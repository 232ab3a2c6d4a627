// Package page is the test of ipvs-manager's web page: the real binary with
// its in-memory kernel, and the page in a real Chromium.
//
// It has a module of its own, so that who imports the library does not get a
// browser's driver. Run it with `make page`; with PAGE_SHOTS=DIR it leaves
// screenshots in DIR.
package page
