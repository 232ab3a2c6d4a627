package agent

import (
	"io"
	"path/filepath"
)

// Lock makes this process the only one that uses an agent's directory until it
// is closed, which the end of the process does too. A Client takes it by itself.
func Lock(dir string) (io.Closer, error) { return lockDir(filepath.Join(dir, "lock")) }
