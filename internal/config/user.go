package config

import (
	"errors"
	"fmt"
	"os/user"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// maxID is the largest uid and gid: the one above it stands for none.
const maxID = 1<<32 - 2

// account reads a user, and looks it up on this machine: name, uid, or one of them
// with a group behind a colon. "" is nobody in particular: nil.
var account = parser[*User]{
	schema: fragment{AnyOf: []fragment{
		{Type: "string", Pattern: `^$|^[^:\s]+(:[^:\s]+)?$`},
		{Type: "integer", Minimum: bound(1), Maximum: bound(maxID)},
	}, form: "name, uid, or either with :group"},
	write: func(u *User) any {
		if u == nil {
			return ""
		}
		return u.Name
	},
	parse: func(d *decoder, path string, n ast.Node) (*User, bool) {
		var said string
		if uid, ok := wholeNumber(n); ok {
			said = strconv.FormatInt(uid, 10)
		} else if said, ok = text.parse(d, path, n); !ok {
			return nil, false
		}
		if said == "" {
			return nil, true
		}
		name, group, with := strings.Cut(said, ":")
		u, err := lookUser(name, group, with)
		if err != nil {
			d.fault(n, "%s: %v", path, err)
			return nil, false
		}
		return u, true
	},
}

// lookUser finds a user with the group that was named, or with its own groups.
func lookUser(name, group string, with bool) (*User, error) {
	if name == "" || with && group == "" || strings.Contains(group, ":") {
		return nil, errors.New("must be a name or a uid, or one of them with a group, as app or app:www-data")
	}
	known, err := user.Lookup(name)
	uid, digits := number(name)
	if err != nil && digits {
		known, err = user.LookupId(name)
	}
	u := &User{Name: name, UID: uid, Home: "/"}
	switch {
	case err == nil:
		u.Name, u.Home = known.Username, known.HomeDir
		u.UID, _ = number(known.Uid)
		u.GID, _ = number(known.Gid)
	case !digits:
		return nil, fmt.Errorf("this machine has no user %s: make one with useradd --system, or write a uid", quote(name))
	case !with:
		return nil, fmt.Errorf("this machine has no user with the uid %s, so its group is not known: write %s:GROUP", name, name)
	}
	if u.UID == 0 {
		return nil, errors.New("cannot be root: that is what workers are without it where the server is root, and nothing holds them")
	}
	if with {
		u.GID, err = lookGroup(group)
		return u, err
	}
	all, err := known.GroupIds()
	if err != nil {
		return nil, fmt.Errorf("cannot look up the groups of %s: %v", quote(name), err)
	}
	for _, id := range all {
		if gid, ok := number(id); ok && gid != u.GID {
			u.Groups = append(u.Groups, gid)
		}
	}
	return u, nil
}

func lookGroup(name string) (int, error) {
	if known, err := user.LookupGroup(name); err == nil {
		name = known.Gid
	}
	gid, ok := number(name)
	if !ok {
		return 0, fmt.Errorf("this machine has no group %s: make one with groupadd --system, or write a gid", quote(name))
	}
	return gid, nil
}

// number reads a uid or gid.
func number(digits string) (int, bool) {
	n, err := strconv.ParseUint(digits, 10, 32)
	return int(n), err == nil && n <= maxID
}
