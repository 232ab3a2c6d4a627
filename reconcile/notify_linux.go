package reconcile

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Notify listens to route netlink's groups for interfaces and addresses.
func (k *linux) Notify(ctx context.Context, changed func()) error {
	var c *netlink.Conn
	err := k.ns.do(func() (err error) {
		c, err = netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{
			Groups: 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1),
		})
		return err
	})
	if err != nil {
		return fmt.Errorf("listen to route netlink: %w", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		// What changed is read anew, so neither what the messages say nor that some
		// were lost (ENOBUFS) matters.
		_, err := c.Receive()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !errors.Is(err, unix.ENOBUFS) {
			return fmt.Errorf("listen to route netlink: %w", err)
		}
		changed()
	}
}
