package api

import (
	"math"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"example.com/hangup/internal/config"
)

const (
	// maxBuckets bounds the callers whose hang-ups are remembered.
	maxBuckets = 10_000
	// looksForRoom is how many buckets are looked at for each new one. More than
	// one can go each time, so those that are full again do not pile up.
	looksForRoom = 8
	// whole is one hang-up, as near as floating point gets to it.
	whole = 1 - 1e-6
)

// Budget bounds what each caller may hang up on: a hang-up can cost a worker, and
// over HTTP/2 a caller can open and reset tens of thousands of streams a second.
//
// Each caller has a bucket of hang-ups that refills steadily. Every hang-up takes
// one out, also of an empty bucket, because the calls that run cannot be taken
// back: that is debt, and who has less than one left is let in no more. Debt grows to
// as much as a full bucket, so that whoever stops doing it can pay it off.
//
// Only those who hung up have a bucket. It outlives a reload of the config, so a
// server has one Budget however many handlers it makes. Its methods may be called
// from any goroutine.
type Budget struct {
	mu      sync.Mutex
	limits  config.Hangups
	buckets map[payer]*rate.Limiter // none of them is known to be full
}

// payer is whose bucket it is: a token's, or else an address's. An IPv6 caller
// has a network full of addresses, and one bucket.
type payer struct {
	token   string
	network netip.Prefix
	local   string // the user on a unix socket
}

// NewBudget makes a Budget in which nobody has hung up yet.
func NewBudget(limits config.Hangups) *Budget {
	return &Budget{limits: limits, buckets: map[payer]*rate.Limiter{}}
}

// SetLimits changes the limits. Who is in debt stays so.
func (b *Budget) SetLimits(limits config.Hangups) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limits = limits
	if limits.Burst == 0 {
		clear(b.buckets)
		return
	}
	now := time.Now()
	for _, bucket := range b.buckets {
		bucket.SetLimitAt(now, b.refill())
		bucket.SetBurstAt(now, limits.Burst)
	}
}

// refill is in hang-ups a second.
func (b *Budget) refill() rate.Limit { return rate.Limit(b.limits.PerMinute) / 60 }

// charge takes one hang-up out of the bucket of p.
func (b *Budget) charge(p payer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.limits.Burst == 0 {
		return
	}
	now := time.Now()
	bucket := b.buckets[p]
	if bucket == nil {
		b.makeRoom(now)
		bucket = rate.NewLimiter(b.refill(), b.limits.Burst)
		b.buckets[p] = bucket
	}
	if bucket.TokensAt(now) > -float64(b.limits.Burst) {
		bucket.ReserveN(now, 1)
	}
}

// wait is how long it takes until p may call again; 0 is now.
func (b *Budget) wait(p payer) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	bucket := b.buckets[p]
	if bucket == nil {
		return 0
	}
	left := bucket.TokensAt(time.Now())
	if b.full(left) {
		delete(b.buckets, p)
	}
	if left >= whole {
		return 0
	}
	return time.Duration((1 - left) / float64(b.refill()) * float64(time.Second))
}

func (b *Budget) full(left float64) bool { return left >= float64(b.limits.Burst) }

// makeRoom looks at a few buckets, whichever the map comes up with. Those that are
// full go. Where there are too many callers, the one of them who owes least is
// forgiven: nobody else pays for a crowd, and the memory is bounded.
func (b *Budget) makeRoom(now time.Time) {
	var least payer
	most, looked := math.Inf(-1), 0
	for p, bucket := range b.buckets {
		left := bucket.TokensAt(now)
		if b.full(left) {
			delete(b.buckets, p)
		} else if left > most {
			least, most = p, left
		}
		if looked++; looked == looksForRoom {
			break
		}
	}
	if len(b.buckets) >= maxBuckets {
		delete(b.buckets, least)
	}
}
