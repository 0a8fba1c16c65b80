// Load offers HTTP/1.1 requests over mTLS to one address and prints what came back, as JSON. Two lines come before it,
// `counting` and `counted`, when it begins and ceases to count: whoever measures a server's CPU reads it then.
//
// It stands for a fleet: each connection presents one of the client certificates in a folder and asks for paths drawn
// from a list by Zipf's law. Closed loop by default (each connection asks as soon as it was answered); with -rate an open
// loop, in which latency counts from when a request was due, so that a stall is not hidden (no coordinated omission).
// It sends to loopback alone, and ends by itself.
package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

type plan struct {
	target      string
	plain       bool
	requests    [][]byte
	configs     []*tls.Config
	connections int
	warmup      time.Duration
	duration    time.Duration
	rate        float64
	zipf        float64
	seed        int64
}

type tally struct {
	latencies []time.Duration
	statuses  map[int]int
	errors    int
	first     string
}

func main() {
	target := flag.String("target", "127.0.0.1:8443", "loopback address to ask")
	name := flag.String("server-name", "localhost", "name in the server's certificate")
	ca := flag.String("ca", "", "PEM file of the server's roots; plain HTTP when empty")
	certs := flag.String("certs", "", "folder of client PEM files, each certificate chain and key")
	requests := flag.String("requests", "", "file of lines METHOD PATH; GET / when empty")
	connections := flag.Int("connections", 64, "connections kept open")
	warmup := flag.Duration("warmup", time.Second, "time that is not counted")
	duration := flag.Duration("duration", 5*time.Second, "time that is counted")
	rate := flag.Float64("rate", 0, "requests per second over all connections; 0 is as many as are answered")
	zipf := flag.Float64("zipf", 1.1, "exponent of the draw among requests")
	seed := flag.Int64("seed", 1, "of the draws; which requests a connection likes best does not depend on it")
	flag.Parse()
	p := plan{*target, *ca == "", nil, nil, *connections, *warmup, *duration, *rate, *zipf, *seed}
	must(checkLoopback(*target))
	must(p.loadRequests(*requests, *name))
	must(p.loadCertificates(*ca, *certs, *name))
	report(p.run())
}

func checkLoopback(target string) error {
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return errors.New("load goes to loopback alone")
	}
	return nil
}

func (p *plan) loadRequests(file, name string) error {
	lines := []string{"GET /"}
	if file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		lines = strings.Split(strings.TrimSpace(string(text)), "\n")
	}
	for _, line := range lines {
		method, path, _ := strings.Cut(line, " ")
		head := fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: load\r\n\r\n", method, path, name)
		p.requests = append(p.requests, []byte(head))
	}
	return nil
}

func (p *plan) loadCertificates(ca, folder, name string) error {
	if p.plain {
		p.configs = []*tls.Config{nil}
		return nil
	}
	roots := x509.NewCertPool()
	text, err := os.ReadFile(ca)
	if err != nil || !roots.AppendCertsFromPEM(text) {
		return fmt.Errorf("no roots in %s: %v", ca, err)
	}
	files, _ := filepath.Glob(filepath.Join(folder, "*.pem"))
	for _, file := range files {
		pair, err := tls.LoadX509KeyPair(file, file)
		if err != nil {
			return err
		}
		p.configs = append(p.configs, &tls.Config{
			RootCAs: roots, ServerName: name, Certificates: []tls.Certificate{pair},
			MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		})
	}
	if len(p.configs) == 0 {
		p.configs = []*tls.Config{{RootCAs: roots, ServerName: name}}
	}
	return nil
}

func (p *plan) run() (tally, time.Duration) {
	start := time.Now().Add(p.warmup)
	end := start.Add(p.duration)
	tallies := make([]tally, p.connections)
	var group sync.WaitGroup
	time.AfterFunc(time.Until(start), func() { fmt.Println("counting") })
	time.AfterFunc(time.Until(end), func() { fmt.Println("counted") })
	for i := range tallies {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			tallies[i] = p.connection(i, start, end)
		}(i)
	}
	group.Wait()
	all := tally{statuses: map[int]int{}}
	for _, each := range tallies {
		all.latencies = append(all.latencies, each.latencies...)
		all.errors += each.errors
		if all.first == "" {
			all.first = each.first
		}
		for status, count := range each.statuses {
			all.statuses[status] += count
		}
	}
	return all, p.duration
}

// connection asks until end, dialling anew after an error.
func (p *plan) connection(i int, start, end time.Time) tally {
	t := tally{statuses: map[int]int{}}
	order := rand.New(rand.NewSource(int64(i) + 1)).Perm(len(p.requests))
	random := rand.New(rand.NewSource(p.seed<<32 + int64(i)))
	draw := rand.NewZipf(random, p.zipf, 1, uint64(len(p.requests)-1))
	var conn net.Conn
	var reader *bufio.Reader
	interval := time.Duration(0)
	if p.rate > 0 {
		interval = time.Duration(float64(p.connections) / p.rate * float64(time.Second))
	}
	due := time.Now().Add(time.Duration(random.Float64() * float64(interval)))
	for time.Now().Before(end) {
		if conn == nil {
			var err error
			if conn, err = p.dial(i); err != nil {
				t.fail(err)
				time.Sleep(10 * time.Millisecond)
				continue
			}
			reader = bufio.NewReaderSize(conn, 16<<10)
		}
		if interval > 0 {
			time.Sleep(time.Until(due))
		} else {
			due = time.Now()
		}
		asked := due
		due = due.Add(interval)
		status, err := ask(conn, reader, p.requests[order[draw.Uint64()]])
		if err != nil {
			t.fail(err)
			conn.Close()
			conn = nil
			continue
		}
		if asked.After(start) {
			t.latencies = append(t.latencies, time.Since(asked))
			t.statuses[status]++
		}
	}
	if conn != nil {
		conn.Close()
	}
	return t
}

func (t *tally) fail(err error) {
	t.errors++
	if t.first == "" {
		t.first = err.Error()
	}
}

func (p *plan) dial(i int) (net.Conn, error) {
	conn, err := net.DialTimeout("tcp", p.target, 5*time.Second)
	if err != nil || p.plain {
		return conn, err
	}
	secure := tls.Client(conn, p.configs[i%len(p.configs)])
	secure.SetDeadline(time.Now().Add(10 * time.Second))
	if err := secure.Handshake(); err != nil {
		conn.Close()
		return nil, err
	}
	secure.SetDeadline(time.Time{})
	return secure, nil
}

// ask sends one request and reads one whole response: by length, or chunked.
func ask(conn net.Conn, reader *bufio.Reader, request []byte) (int, error) {
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := conn.Write(request); err != nil {
		return 0, err
	}
	line, err := reader.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(line) < 12 {
		return 0, errors.New("short status line")
	}
	status, err := strconv.Atoi(string(line[9:12]))
	if err != nil {
		return 0, err
	}
	length := int64(0)
	chunked := false
	for {
		line, err = reader.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if len(line) <= 2 {
			break
		}
		switch line[0] | 0x20 {
		case 'c', 't':
			name, value, _ := strings.Cut(strings.TrimSpace(string(line)), ":")
			switch strings.ToLower(name) {
			case "content-length":
				length, err = strconv.ParseInt(strings.TrimSpace(value), 10, 64)
			case "transfer-encoding":
				chunked = true
			}
			if err != nil {
				return 0, err
			}
		}
	}
	if chunked {
		return status, discardChunks(reader)
	}
	_, err = reader.Discard(int(length))
	return status, err
}

func discardChunks(reader *bufio.Reader) error {
	for {
		line, err := reader.ReadString('\n')
		if err != nil {
			return err
		}
		size, err := strconv.ParseInt(strings.TrimSpace(line), 16, 64)
		if err != nil {
			return err
		}
		if _, err = io.CopyN(io.Discard, reader, size+2); err != nil {
			return err
		}
		if size == 0 {
			return nil
		}
	}
}

func report(t tally, took time.Duration) {
	sort.Slice(t.latencies, func(a, b int) bool { return t.latencies[a] < t.latencies[b] })
	at := func(q float64) float64 {
		if len(t.latencies) == 0 {
			return 0
		}
		return float64(t.latencies[int(q*float64(len(t.latencies)-1))].Microseconds())
	}
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"requests": len(t.latencies), "errors": t.errors, "first_error": t.first, "statuses": t.statuses,
		"seconds": took.Seconds(), "per_second": float64(len(t.latencies)) / took.Seconds(),
		"p50_us": at(0.5), "p90_us": at(0.9), "p99_us": at(0.99), "p999_us": at(0.999),
	})
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(2)
	}
}
