package vmm

import (
	"bytes"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
)

// Bounds of what is read of a process: they are other people's, and may be anything.
const (
	maxFile    = 1 << 20 // bytes of a file but maps
	maxMaps    = 16 << 20
	maxFDs     = 1 << 16
	maxThreads = 1 << 14
	maxArgs    = 4096
)

// A Proc is a mounted proc(5).
type Proc string

// Path is the path of a process's file or directory.
func (p Proc) Path(pid int, name string) string {
	return string(p) + "/" + strconv.Itoa(pid) + "/" + name
}

// read gives at most limit bytes of a process's file.
func (p Proc) read(pid int, name string, limit int64) ([]byte, error) {
	f, err := os.Open(p.Path(pid, name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// numbers gives the names in a directory that are numbers, at most limit of them, in the directory's order.
func (p Proc) numbers(dir string, limit int) ([]int, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var all []int
	for len(all) < limit {
		names, err := f.Readdirnames(1024)
		for _, name := range names {
			if n, err := strconv.Atoi(name); err == nil && n >= 0 {
				all = append(all, n)
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return all, err
		}
	}
	return all[:min(len(all), limit)], nil
}

// Stat is what /proc/PID/stat says (proc_pid_stat(5)).
type Stat struct {
	Comm    string
	State   byte   // a letter
	Parent  int    // process id
	Started uint64 // in ticks (1/100 s) since the host's boot: with the process's id it names a process for ever
}

// ParseStat reads /proc/PID/stat, or that of a thread.
func ParseStat(b []byte) (s Stat, ok bool) {
	from, to := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')') // the name may hold parentheses
	if from < 0 || to < from {
		return s, false
	}
	s.Comm = string(b[from+1 : to])
	f := strings.Fields(string(b[to+1:]))
	const state, parent, started = 0, 1, 19 // counted from the third field
	if len(f) <= started || len(f[state]) != 1 {
		return s, false
	}
	var err1, err2 error
	s.State = f[state][0]
	s.Parent, err1 = strconv.Atoi(f[parent])
	s.Started, err2 = strconv.ParseUint(f[started], 10, 64)
	return s, err1 == nil && err2 == nil
}

// Stat reads a process's.
func (p Proc) Stat(pid int) (Stat, bool) {
	b, err := p.read(pid, "stat", maxFile)
	if err != nil {
		return Stat{}, false
	}
	return ParseStat(b)
}

// parseUID gives the effective user of /proc/PID/status.
func parseUID(status []byte) (uid int, ok bool) {
	for line := range strings.Lines(string(status)) {
		if rest, is := strings.CutPrefix(line, "Uid:"); is {
			if f := strings.Fields(rest); len(f) >= 2 {
				n, err := strconv.ParseUint(f[1], 10, 32)
				return int(n), err == nil
			}
		}
	}
	return 0, false
}

// parseArgs parts a command line at its NULs.
func parseArgs(b []byte) []string {
	if len(b) == 0 {
		return nil
	}
	return strings.SplitN(strings.TrimSuffix(string(b), "\x00"), "\x00", maxArgs)
}

// parseCgroup gives the path in the unified hierarchy (cgroups(7)), or else in the first that has one beside the root.
func parseCgroup(b []byte) string {
	best := ""
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimRight(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		if f[0] == "0" && f[1] == "" && f[2] != "/" {
			return f[2]
		}
		if len(best) < 2 {
			best = f[2]
		}
	}
	return best
}

// A Mapping is a line of /proc/PID/maps.
type Mapping struct {
	Start, End uint64
	Perms      string // "rw-p"
	Offset     uint64
	Inode      uint64 // 0: no file
	Path       string // also of what is no file: "[heap]"
}

// Size is in bytes.
func (m *Mapping) Size() uint64 { return m.End - m.Start }

// ParseMaps reads /proc/PID/maps. A line that is no mapping is left out.
func ParseMaps(b []byte) []Mapping {
	var all []Mapping
	for line := range strings.Lines(string(b)) {
		if m, ok := parseMapping(strings.TrimRight(line, "\n")); ok {
			all = append(all, m)
		}
	}
	return all
}

func parseMapping(line string) (m Mapping, ok bool) {
	var f [5]string // addresses, permissions, offset, device, inode; then the path, which may hold blanks
	for i := range f {
		f[i], line, _ = strings.Cut(line, " ")
	}
	from, to, ok := strings.Cut(f[0], "-")
	if !ok || len(f[1]) != 4 {
		return m, false
	}
	var errs [4]error
	m.Start, errs[0] = strconv.ParseUint(from, 16, 64)
	m.End, errs[1] = strconv.ParseUint(to, 16, 64)
	m.Offset, errs[2] = strconv.ParseUint(f[2], 16, 64)
	m.Inode, errs[3] = strconv.ParseUint(f[4], 10, 64)
	for _, err := range errs {
		if err != nil {
			return m, false
		}
	}
	m.Perms, m.Path = f[1], strings.TrimLeft(line, " ")
	return m, m.End > m.Start && m.Offset <= math.MaxInt64
}

// Maps reads a process's mappings.
func (p Proc) Maps(pid int) ([]Mapping, error) {
	b, err := p.read(pid, "maps", maxMaps)
	if err != nil {
		return nil, err
	}
	return ParseMaps(b), nil
}

// bootTime is the host's boot in seconds since 1970, of /proc/stat.
func (p Proc) bootTime() (int64, bool) {
	f, err := os.Open(string(p) + "/stat")
	if err != nil {
		return 0, false
	}
	defer f.Close()
	b, _ := io.ReadAll(io.LimitReader(f, maxFile))
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, "btime "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(rest), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}
