// Package imports holds the import diagram of ARCHITECTURE.md as a test, and
// wires the seams between the packages at compile time.
package imports
