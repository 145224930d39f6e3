package boot

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// To find a payload in the cache by its content takes reading the kernel's file and the cache's, some tens of megabytes, at every start. A note says
// that a file with this identity is that file of the cache, as it was found on this boot of the host: a line of the cache's file's name, its identity,
// and the boot's. A damage to the disk that comes later is seen after the next boot.

// bootID is one boot of the host; "" where it is not known.
var bootID = sync.OnceValue(func() string {
	text, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text))
})

// knownPath is the note about a file; "" where there can be none.
func knownPath(dir, id string) string {
	if id == "" || bootID() == "" {
		return ""
	}
	return filepath.Join(dir, fmt.Sprintf("%s%x", knownPrefix, sha256.Sum256([]byte(id))))
}

// vouched is a note's text about the file of the cache that is open as u.
func vouched(u *unpacked) (string, error) {
	st, err := u.Stat()
	if err != nil {
		return "", err
	}
	// Its times but that of the last use, which changes the inode's own.
	return fmt.Sprintf("%s %d %d %s\n", strings.TrimSuffix(filepath.Base(u.Name()), tmpSuffix), st.Size(), st.ModTime().UnixNano(), bootID()), nil
}

// openKnown opens what a note names, if that is as it was then.
func openKnown(note, dir string, limit int64) *unpacked {
	if note == "" {
		return nil
	}
	text, err := os.ReadFile(note)
	if err != nil {
		return nil
	}
	name, _, _ := strings.Cut(string(text), " ")
	if !strings.HasPrefix(name, cachePrefix) || strings.ContainsRune(name, '/') {
		return nil
	}
	path := filepath.Join(dir, name)
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	u, err := trailer(f)
	if err == nil && u.size <= limit {
		if now, err := vouched(u); err == nil && now == string(text) {
			used(path)
			used(note)
			return u
		}
	}
	f.Close()
	return nil
}

// know writes a note, if it can.
func know(note string, u *unpacked) {
	if note == "" {
		return
	}
	text, err := vouched(u)
	if err != nil || !strings.HasPrefix(text, cachePrefix) {
		return
	}
	// By a name of its own: another process may write the same note now.
	tmp, err := os.CreateTemp(filepath.Dir(note), ".note-*")
	if err != nil {
		return
	}
	_, err = tmp.WriteString(text)
	tmp.Close()
	if err != nil || os.Rename(tmp.Name(), note) != nil {
		os.Remove(tmp.Name())
		return
	}
	prune(filepath.Dir(note), knownPrefix, knownKeep)
}
