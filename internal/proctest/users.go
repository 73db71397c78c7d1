package proctest

// The users whom tests need beside the two lanes; none of them has an account. They
// are apart from each other, so that no limit of one, and no signal to all that is his,
// reaches another.
const (
	ThrowAway = 62000 // the first of 1,000, of whom one for each run is killed as a whole
	firstLane = 64000 // the first of 1,000, of whom one for each package is its second lane

	Neighbour = 63998 // has files, and runs nothing
	Stranger  = 63999 // so does he
	Begrudger = 65123 // runs what its shim may not kill
	Groupless = 65124 // may make no cgroup
	Alice     = 65131 // has the groups 65132, 65133 and 65134
	Bob       = 65135
	Greedy    = 65141 // has the group 65142
	Bomber    = 65151 // runs a fork bomb and its server
	Contained = 65152 // is PID 1
)
