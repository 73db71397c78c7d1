//go:build !darwin && (!linux || portable)

package proc

// rssUnit is the unit of Rusage.Maxrss.
const rssUnit = 1 << 10
