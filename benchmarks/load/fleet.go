package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync/atomic"
	"time"
)

// fleet is who asks: one TLS configuration for each client certificate, and where they all connect to.
type fleet struct {
	target, ca, certs, name string
	configs                 []*tls.Config
	byName                  map[string]*tls.Config
	next                    atomic.Int64
}

func (f *fleet) flags(flags *flag.FlagSet) {
	flags.StringVar(&f.target, "target", "127.0.0.1:8443", "loopback address to connect to")
	flags.StringVar(&f.ca, "ca", "", "PEM file of the server's certificate; plain TCP when empty")
	flags.StringVar(&f.certs, "certs", "", "folder of client PEM files, each certificate chain and key")
	flags.StringVar(&f.name, "server-name", "localhost", "name to ask the server for")
}

// load reads the certificates. Clients trust the one server certificate in f.ca, and prove by the handshake that the
// server holds its key; a chain that every handshake would verify anew says nothing of the server's speed.
func (f *fleet) load() error {
	if err := checkLoopback(f.target); err != nil {
		return err
	}
	if f.ca == "" {
		f.configs = []*tls.Config{nil}
		return nil
	}
	pinned, err := firstCertificate(f.ca)
	if err != nil {
		return err
	}
	files, _ := filepath.Glob(filepath.Join(f.certs, "*.pem"))
	sort.Strings(files)
	f.byName = map[string]*tls.Config{}
	for _, file := range files {
		pair, err := tls.LoadX509KeyPair(file, file)
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		config := f.config(pair, pinned)
		f.configs = append(f.configs, config)
		f.byName[strings.TrimSuffix(filepath.Base(file), ".pem")] = config
	}
	if len(f.configs) == 0 {
		return fmt.Errorf("no client certificates in %s", f.certs)
	}
	return nil
}

func (f *fleet) config(pair tls.Certificate, pinned []byte) *tls.Config {
	return &tls.Config{
		ServerName: f.name, Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"},
		MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519}, SessionTicketsDisabled: true,
		InsecureSkipVerify: true, // the next line verifies
		VerifyConnection: func(state tls.ConnectionState) error {
			if !bytes.Equal(state.PeerCertificates[0].Raw, pinned) {
				return errors.New("another server's certificate")
			}
			return nil
		},
	}
}

// take is the number of the next of the fleet to connect; after the last comes the first.
func (f *fleet) take() int {
	return int((f.next.Add(1) - 1) % int64(len(f.configs)))
}

// dial connects with a configuration (nil: plain TCP). No read or write may last beyond `until`.
func (f *fleet) dial(config *tls.Config, until time.Time) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", f.target, 10*time.Second)
	if err != nil {
		return nil, err
	}
	if config == nil {
		conn.SetDeadline(until)
		return conn, nil
	}
	secure := tls.Client(conn, config)
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	if err := secure.Handshake(); err != nil {
		conn.Close()
		return nil, err
	}
	conn.SetDeadline(until)
	return secure, nil
}

func firstCertificate(file string) ([]byte, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("no certificate in %s", file)
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	return certificate.Raw, nil
}
