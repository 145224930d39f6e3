package vmm

import (
	"strconv"
	"strings"
)

// options parts an argument of QEMU's kind, "first,key=value,…": a comma that is doubled is one (util/qemu-option.c). What has no key is put under
// implied where it is first, else it is a key that is on.
func options(arg, implied string) map[string]string {
	all := map[string]string{}
	const comma = "\x00" // arguments cannot hold it
	for i, part := range strings.Split(strings.ReplaceAll(arg, ",,", comma), ",") {
		part = strings.ReplaceAll(part, comma, ",")
		key, value, ok := strings.Cut(part, "=")
		switch {
		case ok:
		case i == 0 && implied != "":
			key, value = implied, part
		default:
			value = "on"
		}
		if _, twice := all[key]; !twice {
			all[key] = value
		}
	}
	return all
}

// size is a number of bytes with a unit behind it; without one it counts units of the given size. It is 0 where s is none.
func size(s string, unit uint64) uint64 {
	digits := strings.TrimRight(s, "bBkKmMgGtTiI")
	n, err := strconv.ParseFloat(digits, 64)
	if err != nil || !(n >= 0) || n > 1<<40 {
		return 0
	}
	if suffix := s[len(digits):]; suffix != "" {
		switch suffix[0] | 0x20 {
		case 'b':
			unit = 1
		case 'k':
			unit = 1 << 10
		case 'm':
			unit = 1 << 20
		case 'g':
			unit = 1 << 30
		case 't':
			unit = 1 << 40
		}
	}
	if n*float64(unit) >= 1<<56 {
		return 0
	}
	return uint64(n * float64(unit))
}

// number is a decimal number up to limit, or 0.
func number(s string, limit int) int {
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > limit {
		return 0
	}
	return n
}

// values gives the values of an option among a program's arguments: of "--name x" and "--name=x". QEMU takes one dash for two.
func values(args []string, names ...string) []string {
	var all []string
	for i := 1; i < len(args); i++ {
		for _, name := range names {
			if args[i] == name && i+1 < len(args) {
				all = append(all, args[i+1])
			} else if rest, ok := strings.CutPrefix(args[i], name+"="); ok && strings.HasPrefix(name, "--") {
				all = append(all, rest)
			}
		}
	}
	return all
}

// last is the last of an option's values, which is the one that counts, or empty.
func last(args []string, names ...string) string {
	if all := values(args, names...); len(all) > 0 {
		return all[len(all)-1]
	}
	return ""
}
