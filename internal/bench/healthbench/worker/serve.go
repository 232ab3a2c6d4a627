package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ipvskit/ipvskit/internal/bench/healthbench/job"
)

// serve are the targets: it says at which ports, serves until the end of in, and
// at each line of that says how many connections it has taken so far.
func serve(in *bufio.Scanner) error {
	cert, err := selfSigned()
	if err != nil {
		return err
	}
	var p job.Ports
	for _, s := range []struct {
		port   *uint16
		handle func(net.Conn)
	}{
		{&p.TCP, untilEnd},
		{&p.HTTP, answer},
		{&p.HTTPS, func(c net.Conn) { answer(tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})) }},
	} {
		l, err := net.Listen("tcp4", "0.0.0.0:0")
		if err != nil {
			return err
		}
		*s.port = uint16(l.Addr().(*net.TCPAddr).Port)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				taken.Add(1)
				go func() {
					s.handle(c)
					c.Close()
				}()
			}
		}()
	}
	if p.Hole, err = hole(); err != nil {
		return err
	}
	if err := tell(p); err != nil {
		return err
	}
	for in.Scan() {
		if err := tell(taken.Load()); err != nil {
			return err
		}
	}
	return nil
}

// taken counts connections.
var taken atomic.Int64

func untilEnd(c net.Conn) { c.Read(make([]byte, 1)) } //nolint:errcheck // until the checker ends it

func answer(c net.Conn) {
	in := bufio.NewReaderSize(c, 1024)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		if line == "\r\n" {
			break
		}
	}
	fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
	if s, ok := c.(*tls.Conn); ok {
		s.CloseWrite() //nolint:errcheck // the checker notices
	}
}

// hole is a port that answers nothing: its queue of connections is full.
func hole() (uint16, error) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	if err := syscall.Listen(fd, 0); err != nil {
		return 0, err
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	port := uint16(name.(*syscall.SockaddrInet4).Port)
	for range 16 {
		if _, err := net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", port), 200*time.Millisecond); err != nil {
			return port, nil
		}
	}
	return 0, fmt.Errorf("a queue of length 0 takes 16 connections")
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), DNSNames: []string{"target.example"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}
