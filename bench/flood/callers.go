package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// callers offer the paced load together. Every fourth opens a connection for each
	// call: it has to get in each time.
	callers = 32
	newEach = 4
	// loops make calls in the closed loop, one after the other.
	loops = 8
	// patience is how long a caller waits for a reply.
	patience = 10 * time.Second
)

var payload = bytes.Repeat([]byte("x"), 64)

// load is what became of some calls.
type load struct {
	took     time.Duration
	times    []time.Duration // of those that were answered as they should be, in order
	failures map[string]int
	seconds  []int // how many were answered in each second
}

// rate is the goodput: right replies a second.
func (l load) rate() float64 { return float64(len(l.times)) / l.took.Seconds() }

func (l load) quantile(q float64) time.Duration {
	if len(l.times) == 0 {
		return 0
	}
	return l.times[min(int(q*float64(len(l.times))), len(l.times)-1)]
}

// paced offers calls at a steady rate, whether or not they are answered. A call's time
// counts from when it was due, so that a caller who is held up does not hide it.
func paced(s *server, length time.Duration) load {
	period := callers * time.Second / time.Duration(*rate)
	began := time.Now().Add(10 * time.Millisecond)
	return together(s, callers, func(i int, call func(due time.Time)) {
		for due := began.Add(period * time.Duration(i) / callers); due.Sub(began) < length; due = due.Add(period) {
			time.Sleep(time.Until(due))
			if time.Since(began) > length+patience {
				return // hopelessly behind
			}
			call(due)
		}
	})
}

// closedLoop makes as many calls as are answered.
func closedLoop(s *server, length time.Duration) (load, error) {
	end := time.Now().Add(length)
	l := together(s, loops, func(_ int, call func(due time.Time)) {
		for now := time.Now(); now.Before(end); now = time.Now() {
			call(now)
		}
	})
	if len(l.times) == 0 {
		return l, fmt.Errorf("no call was answered: %v", l.failures)
	}
	return l, nil
}

// together runs n callers, each of which has connections of its own.
func together(s *server, n int, run func(i int, call func(due time.Time))) load {
	l := load{failures: map[string]int{}}
	var mu sync.Mutex
	var all sync.WaitGroup
	began := time.Now()
	for i := range n {
		all.Go(func() {
			transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: i%newEach == 0}
			defer transport.CloseIdleConnections()
			client := &http.Client{Transport: transport}
			run(i, func(due time.Time) {
				err := call(client, s.url+"/execute/work/echo")
				took := time.Since(due)
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					l.failures[err.Error()]++
				} else {
					l.times = append(l.times, took)
					for second := int(time.Since(began).Seconds()); len(l.seconds) <= second; {
						l.seconds = append(l.seconds, 0)
					}
					l.seconds[int(time.Since(began).Seconds())]++
				}
			})
		})
	}
	all.Wait()
	l.took = time.Since(began)
	slices.Sort(l.times)
	return l
}

func call(client *http.Client, url string) error {
	ctx, over := context.WithTimeout(context.Background(), patience)
	defer over()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(payload))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/octet-stream")
	reply, err := client.Do(r)
	if err != nil {
		return err
	}
	defer reply.Body.Close()
	body, err := io.ReadAll(reply.Body)
	if err == nil && !bytes.Equal(body, payload) {
		err = fmt.Errorf("%s: %.80s", reply.Status, body)
	}
	return err
}
