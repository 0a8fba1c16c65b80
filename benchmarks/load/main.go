// Load is everything that the benchmarks put around a gateway, as one program with a command each:
//
//	ask       offers HTTP/1.1 requests over mTLS and reports rate and latencies
//	shake     makes full TLS 1.3 handshakes with client certificates, one after another
//	hold      holds connections and streams open, by commands on standard input, and tells when each closed
//	tunnels   holds nodes' tunnels and streams over them, in the same way
//	pour      measures what passes between connections and a service, in bytes
//	bounce    the same in round trips of small messages
//	upstream  answers: a small body at once, or a stream that never ends
//
// It speaks to loopback alone. `ask`, `shake`, `pour` and `bounce` end by themselves and print what they found as JSON; two lines come
// before it, `counting` and `counted`, when they begin and cease to count: whoever measures a server's CPU reads it then.
package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"time"
)

func main() {
	commands := map[string]func([]string) error{
		"ask": ask, "shake": shake, "hold": hold, "tunnels": holdTunnels, "pour": pour, "bounce": bounce, "upstream": upstream,
	}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		must(errors.New("say ask, shake, hold, tunnels, pour, bounce or upstream"))
	}
	must(commands[os.Args[1]](os.Args[2:]))
}

// period is the time that is counted, after one that is not.
type period struct {
	warmup, duration time.Duration
	start, end       time.Time
}

func (p *period) flags(flags *flag.FlagSet) {
	flags.DurationVar(&p.warmup, "warmup", time.Second, "time that is not counted")
	flags.DurationVar(&p.duration, "duration", 5*time.Second, "time that is counted")
}

// begin sets the period's bounds and has them told.
func (p *period) begin() {
	p.start = time.Now().Add(p.warmup)
	p.end = p.start.Add(p.duration)
	time.AfterFunc(time.Until(p.start), func() { fmt.Println("counting") })
	time.AfterFunc(time.Until(p.end), func() { fmt.Println("counted") })
}

func checkLoopback(address string) error {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return errors.New("load goes to loopback alone")
	}
	return nil
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(2)
	}
}
