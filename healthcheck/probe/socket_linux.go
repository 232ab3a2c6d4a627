package probe

import (
	"fmt"
	"syscall"
)

const canBind = true

// set prepares a socket that is not connected yet.
//
// Half-open: with TCP_QUICKACK off the kernel delays the last acknowledgement
// of the handshake, and closing with a linger of 0 sends a reset instead of it.
// The server's kernel drops the connection before its program could accept it.
func (v Via) set(fd int, halfOpen bool) error {
	if halfOpen {
		if err := syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_QUICKACK, 0); err != nil {
			return fmt.Errorf("switch off TCP_QUICKACK: %w", err)
		}
		if err := syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1}); err != nil {
			return fmt.Errorf("set SO_LINGER: %w", err)
		}
	}
	if v.Interface != "" {
		if err := syscall.BindToDevice(fd, v.Interface); err != nil {
			return fmt.Errorf("bind to interface %s: %w", v.Interface, localError{err})
		}
	}
	if v.Mark != 0 {
		if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_MARK, int(v.Mark)); err != nil {
			return fmt.Errorf("set mark %d: %w", v.Mark, localError{err})
		}
	}
	return nil
}
