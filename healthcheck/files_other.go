//go:build !unix

package healthcheck

import "math"

// fileLimit is how many files this process may open.
func fileLimit() int { return math.MaxInt32 }
