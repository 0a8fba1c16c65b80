package main

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// holding keeps groups of connections open. Commands come by standard input, one a line; each is answered with one line
// of JSON, in order. Times are nanoseconds since the Unix epoch.
//
//	open GROUP CLIENT COUNT PATH    COUNT connections of CLIENT (a certificate's name, or * for each in turn), each of
//	                                which asks for PATH; answered when every head, and every body that ends, is there
//	closed GROUP SECONDS            waits at most so long for all of GROUP to be closed by the server, and tells when
//	count GROUP                     how many of GROUP are open
//	probe CONNECTIONS RATE PATH     from now on, ask for PATH at this rate, each connection of another client
//	latencies FROM TO               what the probe saw, in microseconds, of requests that were due in this time
type holding struct {
	fleet
	groups map[string]*group
	probe  probe
}

type group struct {
	lock   sync.Mutex
	opened int
	closed []int64
	all    chan struct{}
}

func hold(arguments []string) error {
	h, flags := holding{groups: map[string]*group{}}, flag.NewFlagSet("hold", flag.ExitOnError)
	h.fleet.flags(flags)
	flags.Parse(arguments)
	if err := h.fleet.load(); err != nil {
		return err
	}
	commands := bufio.NewScanner(os.Stdin)
	answers := json.NewEncoder(os.Stdout)
	for commands.Scan() {
		found, err := h.obey(strings.Fields(commands.Text()))
		if err != nil {
			found = map[string]any{"error": err.Error()}
		}
		if err := answers.Encode(found); err != nil {
			return err
		}
	}
	return commands.Err()
}

func (h *holding) obey(words []string) (map[string]any, error) {
	numbers := make([]int64, len(words))
	for i, word := range words {
		numbers[i], _ = strconv.ParseInt(word, 10, 64)
	}
	switch {
	case len(words) == 5 && words[0] == "open":
		return h.open(words[1], words[2], int(numbers[3]), words[4])
	case len(words) == 3 && words[0] == "closed":
		return h.group(words[1]).await(time.Duration(numbers[2]) * time.Second), nil
	case len(words) == 2 && words[0] == "count":
		return map[string]any{"open": h.group(words[1]).count()}, nil
	case len(words) == 4 && words[0] == "probe":
		return h.startProbe(int(numbers[1]), int(numbers[2]), words[3])
	case len(words) == 3 && words[0] == "latencies":
		return h.probe.between(numbers[1], numbers[2]), nil
	}
	return nil, fmt.Errorf("not a command: %q", words)
}

func (h *holding) group(name string) *group {
	if h.groups[name] == nil {
		h.groups[name] = &group{all: make(chan struct{})}
	}
	return h.groups[name]
}

func (h *holding) open(name, client string, count int, path string) (map[string]any, error) {
	g, begun := h.group(name), time.Now()
	request := []byte(fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, h.name))
	failures := make(chan error, count)
	free := make(chan struct{}, 64)
	g.opened += count
	for range count {
		config := h.byName[client]
		if client == "*" {
			config = h.configs[h.take()]
		} else if config == nil {
			return nil, fmt.Errorf("no client %s", client)
		}
		free <- struct{}{}
		opened := make(chan error, 1)
		go h.keep(g, config, request, opened)
		go func() {
			failures <- <-opened
			<-free
		}()
	}
	for range count {
		if err := <-failures; err != nil {
			return nil, err
		}
	}
	return map[string]any{"opened": count, "seconds": time.Since(begun).Seconds()}, nil
}

// keep opens a connection, asks once, and reads until the server closes it.
func (h *holding) keep(g *group, config *tls.Config, request []byte, opened chan<- error) {
	conn, err := h.dial(config, time.Time{})
	if err != nil {
		opened <- err
		return
	}
	defer conn.Close()
	reader := bufio.NewReaderSize(conn, 1<<10)
	status, length := 0, 0
	if _, err = conn.Write(request); err == nil {
		status, length, err = readHead(reader)
	}
	if err == nil && status != 200 {
		err = refusal(reader, status, length)
	}
	if err == nil && length > 0 {
		_, err = reader.Discard(length)
	}
	opened <- err
	if err != nil {
		return
	}
	for buffer := make([]byte, 64); err == nil; {
		_, err = reader.Read(buffer)
	}
	g.close(time.Now().UnixNano())
}

func (g *group) close(at int64) {
	g.lock.Lock()
	defer g.lock.Unlock()
	g.closed = append(g.closed, at)
	if len(g.closed) == g.opened {
		close(g.all)
	}
}

func (g *group) count() int {
	g.lock.Lock()
	defer g.lock.Unlock()
	return g.opened - len(g.closed)
}

func (g *group) await(most time.Duration) map[string]any {
	select {
	case <-g.all:
	case <-time.After(most):
	}
	g.lock.Lock()
	defer g.lock.Unlock()
	times := slices.Clone(g.closed)
	slices.Sort(times)
	found := map[string]any{"opened": g.opened, "closed": len(times)}
	if len(times) > 0 {
		found["first"], found["last"] = times[0], times[len(times)-1]
		found["median"], found["p99"] = times[len(times)/2], times[len(times)*99/100]
	}
	return found
}

// probe asks at a steady rate and keeps, of each request, when it was due and how long it took from then on.
type probe struct {
	lock   sync.Mutex
	next   []int64 // when each connection's next request is due
	due    []int64
	took   []int64
	errors []string
}

func (h *holding) startProbe(connections, rate int, path string) (map[string]any, error) {
	request := []byte(fmt.Sprintf("GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, h.name))
	interval := time.Duration(connections) * time.Second / time.Duration(rate)
	h.probe.next = make([]int64, connections)
	for i := range connections {
		conn, err := h.dial(h.configs[len(h.configs)-1-i], time.Time{})
		if err != nil {
			return nil, err
		}
		go func() {
			reader := bufio.NewReader(conn)
			due := time.Now().Add(interval * time.Duration(i) / time.Duration(connections))
			for ; ; due = due.Add(interval) {
				time.Sleep(time.Until(due))
				_, err := exchange(conn, reader, request)
				if !h.probe.saw(i, due, interval, err) {
					return
				}
			}
		}()
	}
	return map[string]any{"probing": connections}, nil
}

func (p *probe) saw(connection int, due time.Time, interval time.Duration, err error) bool {
	p.lock.Lock()
	defer p.lock.Unlock()
	if err != nil {
		p.errors = append(p.errors, err.Error())
		return false
	}
	p.next[connection] = due.Add(interval).UnixNano()
	p.due = append(p.due, due.UnixNano())
	p.took = append(p.took, time.Since(due).Microseconds())
	return true
}

// between waits until all that was due before `to` is answered.
func (p *probe) between(from, to int64) map[string]any {
	for wait := time.Now().Add(time.Minute); !p.past(to) && time.Now().Before(wait); {
		time.Sleep(time.Millisecond)
	}
	p.lock.Lock()
	defer p.lock.Unlock()
	found := []int64{}
	for i, due := range p.due {
		if from <= due && due < to {
			found = append(found, p.took[i])
		}
	}
	return map[string]any{"micros": found, "errors": p.errors}
}

func (p *probe) past(to int64) bool {
	p.lock.Lock()
	defer p.lock.Unlock()
	return len(p.errors) > 0 || slices.Min(p.next) >= to
}
