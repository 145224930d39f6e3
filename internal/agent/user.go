package agent

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"

	"vitrine.dev/vitrine/internal/agent/wire"
)

// become gives the credentials of the user that m asks for, nil for root, and adds what passwd(5) says of the user to the environment, where that is
// not given.
func become(m *wire.Start) (*syscall.Credential, error) {
	if m.User == "" {
		return nil, nil
	}
	name, group, grouped := strings.Cut(m.User, ":")
	uid, err := strconv.ParseUint(name, 10, 32)
	numeric := err == nil
	entry := find("/etc/passwd", func(f []string) bool {
		return len(f) >= 7 && (f[0] == name || numeric && f[2] == name)
	})
	cred := &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}
	home := "/"
	switch {
	case entry != nil:
		u, uerr := strconv.ParseUint(entry[2], 10, 32)
		g, gerr := strconv.ParseUint(entry[3], 10, 32)
		if uerr != nil || gerr != nil {
			return nil, errors.New("user " + name + ": /etc/passwd is no good")
		}
		cred.Uid, cred.Gid = uint32(u), uint32(g)
		name, home = entry[0], entry[5]
	case !numeric:
		return nil, errors.New("the guest has no user " + name)
	}
	if grouped {
		g, err := strconv.ParseUint(group, 10, 32)
		if err != nil {
			row := find("/etc/group", func(f []string) bool { return len(f) >= 3 && f[0] == group })
			if row == nil {
				return nil, errors.New("the guest has no group " + group)
			}
			if g, err = strconv.ParseUint(row[2], 10, 32); err != nil {
				return nil, errors.New("group " + group + ": /etc/group is no good")
			}
		}
		cred.Gid = uint32(g)
	} else {
		find("/etc/group", func(f []string) bool {
			if len(f) >= 4 && member(f[3], name) {
				if g, err := strconv.ParseUint(f[2], 10, 32); err == nil && len(cred.Groups) < 1024 {
					cred.Groups = append(cred.Groups, uint32(g))
				}
			}
			return false
		})
	}
	for _, v := range []string{"HOME=" + home, "USER=" + name, "LOGNAME=" + name} {
		key, _, _ := strings.Cut(v, "=")
		if getenv(m.Env, key) == "" {
			m.Env = append(m.Env, v)
		}
	}
	return cred, nil
}

func member(list, name string) bool {
	for _, m := range strings.Split(list, ",") {
		if m == name {
			return true
		}
	}
	return false
}

// find gives the fields of the first line of a file like passwd(5) that match wants.
func find(path string, match func(fields []string) bool) []string {
	text, _ := os.ReadFile(path)
	for _, line := range strings.Split(string(text), "\n") {
		if f := strings.Split(line, ":"); match(f) {
			return f
		}
	}
	return nil
}
