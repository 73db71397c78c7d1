//go:build linux

package reap

// Descendants lists the processes below pid as they are now, nearest first. It
// is a look, not a proof: the tree may change while it is read.
func Descendants(pid int) []int {
	children := newLister(pid)
	seen := map[int]bool{pid: true} // a number given away meanwhile could make a ring
	found := []int{pid}
	for i := 0; i < len(found); i++ {
		for _, child := range children(found[i]) {
			if !seen[child] {
				seen[child] = true
				found = append(found, child)
			}
		}
	}
	return found[1:]
}
