package reap

// Descendants lists the processes below pid as they are now, nearest first. It
// is a look, not a proof: the tree may change while it is read.
func Descendants(pid int) []int {
	children := newLister(pid)
	found := children(pid)
	for i := 0; i < len(found); i++ {
		found = append(found, children(found[i])...)
	}
	return found
}
