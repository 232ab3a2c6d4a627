//go:build !unix

package agent

import "os"

// lockDir only opens the file: agents run on Linux, elsewhere tests do.
func lockDir(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
}
