package agent

import "time"

// CountEvery makes a client read its counters more often.
func CountEvery(c *ClientConfig, every time.Duration) { c.countEvery = every }
