package main

import (
	"math/bits"
	"sync"
	"time"
)

// tally counts answers by status and by latency. Latencies are kept to 1.6 % (64 steps for each doubling), so that a long
// run takes no more memory than a short one.
type tally struct {
	lock     sync.Mutex
	buckets  [64 * 40]int
	count    int
	sum      time.Duration
	longest  time.Duration
	statuses map[int]int
	errors   int
	first    string
	clients  int64
}

func newTally() *tally {
	return &tally{statuses: map[int]int{}}
}

func (t *tally) add(status int, took time.Duration) {
	t.statuses[status]++
	t.count++
	t.sum += took
	t.longest = max(t.longest, took)
	t.buckets[bucketOf(took)]++
}

func (t *tally) fail(err error) {
	t.errors++
	if t.first == "" {
		t.first = err.Error()
	}
}

func (t *tally) merge(other *tally) {
	t.lock.Lock()
	defer t.lock.Unlock()
	for i, count := range other.buckets {
		t.buckets[i] += count
	}
	for status, count := range other.statuses {
		t.statuses[status] += count
	}
	t.count += other.count
	t.sum += other.sum
	t.longest = max(t.longest, other.longest)
	t.errors += other.errors
	if t.first == "" {
		t.first = other.first
	}
}

// bucketOf: below 64 ns one bucket a nanosecond, above it 64 buckets a doubling.
func bucketOf(took time.Duration) int {
	n := uint64(max(took, 0))
	if n < 64 {
		return int(n)
	}
	above := bits.Len64(n) - 7
	return min(64*(above+1)+int(n>>above)-64, 64*40-1)
}

// middle of a bucket, in microseconds.
func middle(bucket int) float64 {
	if bucket < 64 {
		return float64(bucket) / 1000
	}
	above := bucket/64 - 1
	return float64((uint64(bucket%64+64)<<above)+(uint64(1)<<above)/2) / 1000
}

func (t *tally) at(q float64) float64 {
	wanted := int(q * float64(t.count-1))
	for bucket, count := range t.buckets {
		if wanted -= count; wanted < 0 {
			return middle(bucket)
		}
	}
	return 0
}

func (t *tally) report(counted time.Duration) map[string]any {
	return map[string]any{
		"requests": t.count, "errors": t.errors, "first_error": t.first, "statuses": t.statuses, "clients": t.clients,
		"per_second": float64(t.count) / counted.Seconds(), "mean_us": float64(t.sum.Microseconds()) / float64(max(t.count, 1)),
		"p50_us": t.at(0.5), "p90_us": t.at(0.9), "p99_us": t.at(0.99), "p999_us": t.at(0.999),
		"max_us": float64(t.longest.Microseconds()),
	}
}
