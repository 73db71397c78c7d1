package config

import "strings"

// remedy names the word that was likely meant, else all that there are.
func remedy(wrong string, words []string) string {
	if best := nearest(wrong, words); best != "" {
		return "did you mean " + best + "?"
	}
	return "it must be " + anyOf(words)
}

// nearest is the word that was likely meant, or "".
func nearest(wrong string, words []string) string {
	best, bestDistance := "", 3 // a slip or two
	for _, w := range words {
		if d := distance(plain(wrong), plain(w)); d < min(bestDistance, len(w)) {
			best, bestDistance = w, d
		}
	}
	if best == "" {
		for _, w := range words { // body_max for body, TERM for SIGTERM
			a, b := plain(wrong), plain(w)
			if len(a) > 2 && len(b) > 2 && (strings.Contains(a, b) || strings.Contains(b, a)) {
				best = w
				break
			}
		}
	}
	return best
}

// plain leaves only what people do not mix up.
func plain(s string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "", " ", "").Replace(s))
}

// anyOf is "a", "a or b", "a, b or c".
func anyOf(words []string) string {
	if len(words) == 1 {
		return words[0]
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

// maxCompared bounds the work on a word that is no slip of any other.
const maxCompared = 40

// distance counts the letters to add, drop, change or swap with the next to get from a to b.
func distance(a, b string) int {
	if len(a) > maxCompared || len(b) > maxCompared {
		return maxCompared
	}
	var before, prev []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, prev, row = prev, row, make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := prev[j-1]
			if a[i-1] != b[j-1] {
				change++
			}
			row[j] = min(prev[j]+1, row[j-1]+1, change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}
