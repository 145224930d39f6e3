package hostfs

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Operations and flags of fuse.h that only a writable export knows.
const (
	opSymlink, opMknod, opRmdir, opRename2, opLink = 6, 8, 11, 45, 13

	fattrMode, fattrSize, fattrMtime = 1 << 0, 1 << 3, 1 << 5
)

func u32(all ...uint32) []byte {
	var b []byte
	for _, v := range all {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return b
}

// id takes the node out of an entry that was made.
func id(t *testing.T, b []byte, code unix.Errno) uint64 {
	t.Helper()
	if code != 0 || len(b) < 8 {
		t.Fatalf("got %d bytes, %v; want an entry", len(b), code)
	}
	return binary.LittleEndian.Uint64(b)
}

func writeBody(off uint64, data string) []byte {
	b := make([]byte, 40)
	binary.LittleEndian.PutUint64(b[8:], off)
	binary.LittleEndian.PutUint32(b[16:], uint32(len(data)))
	return append(b, data...)
}

func renameBody(newDir uint64, flags uint32, from, to string) []byte {
	b := binary.LittleEndian.AppendUint64(nil, newDir)
	return append(append(b, u32(flags, 0)...), from+"\x00"+to+"\x00"...)
}

func TestAWritableExportIsChangedAsItsGuestWants(t *testing.T) {
	dir := t.TempDir()
	c := serve(t, Export{Dir: dir, Rule: Owner, Writable: true})
	sub, code := c.call(opMkdir, 1, append(u32(0o4750, 0), "sub\x00"...), 128)
	d := id(t, sub, code)
	// A file that its maker may not write to, and writes to.
	b, code := c.call(opMknod, d, append(u32(unix.S_IFREG|0o6444, 0, 0, 0), "file\x00"...), 128)
	f := id(t, b, code)
	if _, code := c.call(opWrite, f, writeBody(0, "hello, host"), 8); code != 0 {
		t.Errorf("write: %v", code)
	}
	if _, code := c.call(opWrite, f, writeBody(7, "guest"), 8); code != 0 {
		t.Errorf("write inside: %v", code)
	}
	at := filepath.Join(dir, "sub", "file")
	if text, err := os.ReadFile(at); err != nil || string(text) != "hello, guest" {
		t.Errorf("got %q, %v", text, err)
	}
	for path, want := range map[string]os.FileMode{at: 0o444, filepath.Join(dir, "sub"): os.ModeDir | 0o750} {
		if fi, err := os.Stat(path); err != nil || fi.Mode() != want {
			t.Errorf("%s: %v, %v; want %v, without set-ID bits", path, fi.Mode(), err, want)
		}
	}
	set := make([]byte, 88)
	binary.LittleEndian.PutUint32(set, fattrMode|fattrSize|fattrMtime)
	binary.LittleEndian.PutUint64(set[16:], 5)
	binary.LittleEndian.PutUint64(set[40:], 1_000_000_000)
	binary.LittleEndian.PutUint32(set[68:], 0o4600)
	if _, code := c.call(opSetattr, f, set, 128); code != 0 {
		t.Errorf("setattr: %v", code)
	}
	if fi, err := os.Stat(at); err != nil || fi.Mode() != 0o600 || fi.Size() != 5 || fi.ModTime().Unix() != 1_000_000_000 {
		t.Errorf("after setattr: %v, %v", fi, err)
	}
	if _, code := c.call(opRename2, d, renameBody(1, 0, "file", "moved"), 0); code != 0 {
		t.Errorf("rename: %v", code)
	}
	if got, code := c.read(f, 0, 100); code != 0 || string(got) != "hello" {
		t.Errorf("the moved file by its node: %q, %v", got, code)
	}
	if _, code := c.call(opSymlink, 1, []byte("link\x00moved\x00"), 128); code != 0 {
		t.Errorf("symlink: %v", code)
	}
	if to, err := os.Readlink(filepath.Join(dir, "link")); err != nil || to != "moved" {
		t.Errorf("link to %q, %v", to, err)
	}
	body := append(binary.LittleEndian.AppendUint64(nil, f), "second\x00"...)
	if _, code := c.call(opLink, 1, body, 128); code != 0 {
		t.Errorf("link: %v", code)
	}
	for _, name := range []string{"moved", "second", "link"} {
		if _, code := c.call(opUnlink, 1, []byte(name+"\x00"), 0); code != 0 {
			t.Errorf("unlink %s: %v", name, code)
		}
	}
	if _, code := c.call(opRmdir, 1, []byte("sub\x00"), 0); code != 0 {
		t.Errorf("rmdir: %v", code)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestAWritableExportIsChangedNowhereElse(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "export")
	for _, d := range []string{dir, filepath.Join(dir, ".private")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	victim := filepath.Join(top, "victim")
	os.WriteFile(victim, []byte("intact"), 0o600)
	os.Symlink("../victim", filepath.Join(dir, "out"))
	os.Symlink("..", filepath.Join(dir, "up"))
	c := serve(t, Export{Dir: dir, Rule: Owner, Home: dir, Writable: true})
	out, _ := c.path("out")
	up, _ := c.path("up")
	set := make([]byte, 88)
	binary.LittleEndian.PutUint32(set, fattrMode|fattrSize)
	binary.LittleEndian.PutUint32(set[68:], 0o777)
	for name, call := range map[string]func() unix.Errno{
		"write through a link":   func() unix.Errno { _, e := c.call(opWrite, out, writeBody(0, "bad"), 8); return e },
		"setattr through a link": func() unix.Errno { _, e := c.call(opSetattr, out, set, 128); return e },
		"mknod through a link": func() unix.Errno {
			_, e := c.call(opMknod, up, append(u32(unix.S_IFREG|0o644, 0, 0, 0), "new\x00"...), 128)
			return e
		},
		"unlink by a path": func() unix.Errno { _, e := c.call(opUnlink, 1, []byte("../victim\x00"), 0); return e },
		"rename by a path": func() unix.Errno { _, e := c.call(opRename2, 1, renameBody(1, 0, "../victim", "got"), 0); return e },
		"a device": func() unix.Errno {
			_, e := c.call(opMknod, 1, append(u32(unix.S_IFCHR|0o666, 0x103, 0, 0), "null\x00"...), 128)
			return e
		},
		"what the guest cannot see": func() unix.Errno { _, e := c.call(opRmdir, 1, []byte(".private\x00"), 0); return e },
	} {
		if code := call(); code == 0 {
			t.Errorf("%s: no error", name)
		}
	}
	if text, err := os.ReadFile(victim); err != nil || string(text) != "intact" {
		t.Errorf("the victim: %q, %v", text, err)
	}
	if fi, err := os.Stat(victim); err != nil || fi.Mode() != 0o600 {
		t.Errorf("the victim: %v, %v", fi.Mode(), err)
	}
	if names, err := os.ReadDir(top); err != nil || len(names) != 2 {
		t.Errorf("beside the export: %v, %v", names, err)
	}
}

func TestALinkKeepsItsOwnerAndTimes(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink("/etc/passwd", link); err != nil {
		t.Fatal(err)
	}
	c := serve(t, Export{Dir: dir, Rule: Owner, Writable: true})
	id, _ := c.path("link")
	const fattrUID, offUID = 1 << 1, 76
	var was, is unix.Stat_t
	unix.Lstat(link, &was)
	for _, x := range []struct {
		valid, uid uint32
		want       unix.Errno
	}{{fattrMtime, 0, 0}, {fattrUID, was.Uid, 0}, {fattrUID, was.Uid + 1, unix.EPERM}, {fattrMode, 0, unix.EACCES}, {fattrSize, 0, unix.EINVAL}} {
		set := make([]byte, 88)
		binary.LittleEndian.PutUint32(set, x.valid)
		binary.LittleEndian.PutUint64(set[40:], 1_000_000_000)
		binary.LittleEndian.PutUint32(set[offUID:], x.uid)
		if _, code := c.call(opSetattr, id, set, 128); code != x.want {
			t.Errorf("valid %#x, user %d: %v, want %v", x.valid, x.uid, code, x.want)
		}
	}
	if unix.Lstat(link, &is); is.Uid != was.Uid || is.Mtim != was.Mtim {
		t.Errorf("user %d and time %v became %d and %v", was.Uid, was.Mtim, is.Uid, is.Mtim)
	}
}

func TestAFileThatMayNotBeReadGetsItsTimes(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	if err := os.WriteFile(path, nil, 0o200); err != nil {
		t.Fatal(err)
	}
	c := serve(t, Export{Dir: dir, Rule: Owner, Writable: true})
	id, _ := c.path("file")
	set := make([]byte, 88)
	binary.LittleEndian.PutUint32(set, fattrMtime)
	binary.LittleEndian.PutUint64(set[40:], 1_000_000_000)
	if _, code := c.call(opSetattr, id, set, 128); code != 0 {
		t.Errorf("setattr: %v", code)
	}
	if fi, err := os.Stat(path); err != nil || fi.ModTime().Unix() != 1_000_000_000 {
		t.Errorf("its time: %v, %v", fi.ModTime(), err)
	}
}

func FuzzHandleWritable(f *testing.F) {
	f.Add(uint32(opMknod), uint64(1), append(u32(unix.S_IFREG|0o644, 0, 0, 0), "../new\x00"...))
	f.Add(uint32(opRename2), uint64(1), renameBody(2, 2, "a", "b"))
	f.Add(uint32(opWrite), uint64(2), writeBody(1<<63, "x"))
	f.Fuzz(func(t *testing.T, op uint32, node uint64, body []byte) {
		top := t.TempDir()
		dir := filepath.Join(top, "export")
		os.Mkdir(dir, 0o755)
		os.Mkdir(filepath.Join(dir, "a"), 0o755)
		os.WriteFile(filepath.Join(dir, "b"), []byte("b"), 0o644)
		c := serve(t, Export{Dir: dir, Rule: Owner, Writable: true})
		c.lookup(1, "a")
		c.lookup(1, "b")
		c.call(op, node, body, 4096)
		c.call(op, node, body, 4096)
		if names, err := os.ReadDir(top); err != nil || len(names) != 1 {
			t.Errorf("beside the export: %v, %v", names, err)
		}
	})
}
