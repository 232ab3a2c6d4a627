//go:build !linux

package probe

import (
	"errors"
	"net/netip"
	"os"
)

const canPing = false

func (v Via) icmp(netip.Addr) (*os.File, error) { return nil, errors.ErrUnsupported }
