package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Dir is the directory of the calling user's guests: $XDG_RUNTIME_DIR/vitrine, else /run/user/UID/vitrine, else
// /tmp/vitrine-UID. It need not exist.
func Dir() string {
	if d := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(d) {
		return filepath.Join(d, "vitrine")
	}
	uid := strconv.Itoa(os.Geteuid())
	if fi, err := os.Stat("/run/user/" + uid); err == nil && fi.IsDir() {
		return "/run/user/" + uid + "/vitrine"
	}
	return "/tmp/vitrine-" + uid
}

// Dirs is where guests are looked for: the user's own directory first; for root, every user's.
func Dirs() []string {
	dirs := []string{Dir()}
	if os.Geteuid() != 0 {
		return dirs
	}
	for _, pattern := range []string{"/run/user/*/vitrine", "/tmp/vitrine-*"} {
		found, _ := filepath.Glob(pattern)
		for _, d := range found {
			if d != dirs[0] && ownerNamed(d) {
				dirs = append(dirs, d)
			}
		}
	}
	return dirs
}

// ownerNamed tells whether a directory belongs to the user whose number its path has: in /tmp anybody can make any name.
func ownerNamed(d string) bool {
	name := filepath.Base(filepath.Dir(d))
	if n, ok := strings.CutPrefix(filepath.Base(d), "vitrine-"); ok {
		name = n
	}
	var st unix.Stat_t
	return unix.Lstat(d, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && strconv.Itoa(int(st.Uid)) == name
}

// makeDir makes dir, or accepts one that is ours alone.
func makeDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("host: %s cannot be made: its parent is not there: set XDG_RUNTIME_DIR to a directory of yours", dir)
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("host: %w: set XDG_RUNTIME_DIR to a directory of yours", err)
	}
	return checkDir(dir)
}

// checkDir refuses a directory that somebody else could have prepared.
func checkDir(dir string) error {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("host: %s: %w", dir, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("host: %s is not a directory: remove it, or set XDG_RUNTIME_DIR", dir)
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("host: %s belongs to user %d: set XDG_RUNTIME_DIR to a directory of yours", dir, st.Uid)
	case st.Mode&0o077 != 0:
		return fmt.Errorf("host: %s is open to others (mode %04o): chmod 700 it", dir, st.Mode&0o7777)
	}
	return nil
}
