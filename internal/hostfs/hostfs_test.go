package hostfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// serve makes a caller for an export.
func serve(t testing.TB, e Export) *client {
	t.Helper()
	s, err := New(e)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t: t, s: s, unique: 1}
	t.Cleanup(func() { s.Close() })
	var init [16 + 48]byte
	binary.LittleEndian.PutUint32(init[0:], 7)
	binary.LittleEndian.PutUint32(init[4:], 36)
	binary.LittleEndian.PutUint32(init[8:], 1<<20)
	if _, code := c.call(opInit, 0, init[:], 256); code != 0 {
		t.Fatalf("INIT: %v", code)
	}
	return c
}

// FUSE operations (include/uapi/linux/fuse.h).
const (
	opLookup, opForget, opGetattr, opReadlink, opOpen, opRead, opInit, opReaddir, opReaddirplus = 1, 2, 3, 5, 14, 15, 26, 28, 44
	opMkdir, opUnlink, opSetattr, opWrite, opFlush                                              = 9, 10, 4, 16, 25
)

type client struct {
	t      testing.TB
	s      *Server
	unique uint64
}

// call sends one request as a guest's driver does and returns the answer's body and error.
func (c *client) call(op uint32, node uint64, body []byte, room int) ([]byte, unix.Errno) {
	head := make([]byte, 40)
	le := binary.LittleEndian
	c.unique++
	le.PutUint32(head[0:], uint32(40+len(body)))
	le.PutUint32(head[4:], op)
	le.PutUint64(head[8:], c.unique)
	le.PutUint64(head[16:], node)
	out := [][]byte{make([]byte, 16), make([]byte, room)}
	n := c.s.Handle([][]byte{head, body}, out)
	if n < 16 {
		return nil, unix.EIO
	}
	return out[1][:n-16], unix.Errno(-int32(le.Uint32(out[0][4:])))
}

func (c *client) lookup(dir uint64, name string) (uint64, fuse.Attr) {
	b, code := c.call(opLookup, dir, append([]byte(name), 0), 128)
	if code != 0 || len(b) < 128 {
		return 0, fuse.Attr{}
	}
	le := binary.LittleEndian
	a := b[40:]
	return le.Uint64(b), fuse.Attr{Ino: le.Uint64(a), Size: le.Uint64(a[8:]), Mode: le.Uint32(a[60:])}
}

func (c *client) path(p string) (uint64, fuse.Attr) {
	id, a := uint64(1), fuse.Attr{}
	for _, name := range strings.Split(p, "/") {
		if id, a = c.lookup(id, name); id == 0 {
			break
		}
	}
	return id, a
}

func (c *client) read(node uint64, off uint64, size uint32) ([]byte, unix.Errno) {
	var b [40]byte
	binary.LittleEndian.PutUint64(b[8:], off)
	binary.LittleEndian.PutUint32(b[16:], size)
	return c.call(opRead, node, b[:], int(size))
}

func (c *client) names(node uint64) []string {
	var all []string
	off := uint64(0)
	for range 1000 {
		var b [40]byte
		binary.LittleEndian.PutUint64(b[8:], off)
		binary.LittleEndian.PutUint32(b[16:], 512)
		r, code := c.call(opReaddir, node, b[:], 512)
		if code != 0 || len(r) == 0 {
			break
		}
		for len(r) >= 24 {
			off = binary.LittleEndian.Uint64(r[8:])
			n := int(binary.LittleEndian.Uint32(r[16:]))
			all = append(all, string(r[24:24+n]))
			r = r[(24+n+7)&^7:]
		}
	}
	return all
}

// tree makes a directory with a file of each kind and returns its path.
func tree(t testing.TB) string {
	dir := t.TempDir()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name string, mode os.FileMode) {
		must(os.WriteFile(filepath.Join(dir, name), []byte("of "+name), mode))
		must(os.Chmod(filepath.Join(dir, name), mode))
	}
	must(os.Mkdir(filepath.Join(dir, "open"), 0o755))
	must(os.Mkdir(filepath.Join(dir, "shut"), 0o700))
	must(os.Mkdir(filepath.Join(dir, ".private"), 0o700))
	write("open/public", 0o644)
	write("open/secret", 0o600)
	write("open/group", 0o640)
	write("shut/inside", 0o644)
	must(os.Symlink("/etc/shadow", filepath.Join(dir, "link")))
	must(os.Symlink("shut", filepath.Join(dir, "way-in")))
	must(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o666))
	must(os.Chmod(filepath.Join(dir, "fifo"), 0o666))
	return dir
}

func TestNobodySeesOnlyWhatStrangersMayRead(t *testing.T) {
	c := serve(t, Export{Dir: tree(t)})
	id, _ := c.path("open/public")
	if b, code := c.read(id, 0, 100); code != 0 || string(b) != "of open/public" {
		t.Errorf("open/public: %q, %v", b, code)
	}
	if b, code := c.read(id, 3, 4); code != 0 || string(b) != "open" {
		t.Errorf("open/public from 3: %q, %v", b, code)
	}
	for _, p := range []string{"open/secret", "open/group", "shut", "shut/inside", ".private", "nothing"} {
		if id, _ := c.path(p); id != 0 {
			t.Errorf("%s is there", p)
		}
	}
	open, _ := c.path("open")
	if got := strings.Join(c.names(open), " "); strings.Contains(got, "secret") || strings.Contains(got, "group") || !strings.Contains(got, "public") {
		t.Errorf("names in open: %s", got)
	}
	if got := strings.Join(c.names(1), " "); strings.Contains(got, "shut") || !strings.Contains(got, "way-in") {
		t.Errorf("names at the root: %s", got)
	}
}

func TestSpecialFilesGiveNothingAway(t *testing.T) {
	c := serve(t, Export{Dir: tree(t)})
	for _, name := range []string{"link", "way-in", "fifo"} {
		id, a := c.path(name)
		if id == 0 {
			t.Fatalf("%s is absent", name)
		}
		if b, code := c.read(id, 0, 100); code == 0 {
			t.Errorf("%s (mode %o) can be read: %q", name, a.Mode, b)
		}
		if id, _ := c.lookup(id, "inside"); id != 0 {
			t.Errorf("%s leads to a file", name)
		}
	}
	id, _ := c.path("link")
	if b, code := c.call(opReadlink, id, nil, 4096); code != 0 || string(b) != "/etc/shadow" {
		t.Errorf("readlink: %q, %v", b, code)
	}
}

func TestNamesCannotClimb(t *testing.T) {
	c := serve(t, Export{Dir: filepath.Join(tree(t), "open")})
	for _, name := range []string{"..", ".", "", "../shut", "/etc/passwd", "public/", "../open/public", strings.Repeat("x", 300)} {
		if id, _ := c.lookup(1, name); id != 0 {
			t.Errorf("lookup of %q succeeds", name)
		}
	}
}

func TestHostRootHidesPseudoFileSystems(t *testing.T) {
	c := serve(t, HostRoot(Nobody))
	for _, p := range []string{"proc/self", "proc/version", "sys/kernel", "dev/null", "run/lock", "etc/shadow"} {
		if id, _ := c.path(p); id != 0 {
			t.Errorf("/%s is there", p)
		}
	}
	for _, p := range []string{"proc", "sys", "dev", "tmp"} {
		id, a := c.path(p)
		if id == 0 || a.Mode&unix.S_IFMT != unix.S_IFDIR {
			t.Errorf("/%s is not a directory", p)
		}
		if n := c.names(id); len(n) != 0 {
			t.Errorf("/%s lists %q", p, n)
		}
	}
	if id, _ := c.path("etc/passwd"); id == 0 {
		t.Error("/etc/passwd is absent")
	}
}

func TestPseudoFileSystemsAreNoExports(t *testing.T) {
	for _, dir := range []string{"/proc", "/proc/self", "/sys/kernel"} {
		if s, err := New(Export{Dir: dir, Rule: Owner}); !errors.Is(err, ErrPseudo) {
			t.Errorf("%s: %v", dir, err)
			if err == nil {
				s.Close()
			}
		}
	}
}

func TestOwnerSeesHisFilesButNotPrivateDotDirectoriesOfHome(t *testing.T) {
	dir := tree(t)
	c := serve(t, Export{Dir: dir, Rule: Owner, Home: dir})
	if id, _ := c.path("open/secret"); id == 0 {
		t.Error("open/secret is absent")
	}
	if id, _ := c.path("shut/inside"); id == 0 {
		t.Error("shut/inside is absent")
	}
	if id, _ := c.path(".private"); id != 0 {
		t.Error(".private of the home directory is there")
	}
}

func TestWritesAreRefused(t *testing.T) {
	dir := tree(t)
	c := serve(t, Export{Dir: dir, Rule: Owner})
	id, _ := c.path("open/public")
	if _, code := c.call(opMkdir, 1, append(make([]byte, 8), "new\x00"...), 128); code != unix.EROFS {
		t.Errorf("mkdir: %v", code)
	}
	if _, code := c.call(opUnlink, 1, []byte("link\x00"), 0); code != unix.EROFS {
		t.Errorf("unlink: %v", code)
	}
	if _, code := c.call(opSetattr, id, make([]byte, 88), 128); code != unix.EROFS {
		t.Errorf("setattr: %v", code)
	}
	if _, code := c.call(opWrite, id, make([]byte, 48), 64); code != unix.EROFS {
		t.Errorf("write: %v", code)
	}
	if _, code := c.call(opOpen, id, []byte{unix.O_RDWR, 0, 0, 0, 0, 0, 0, 0}, 64); code != unix.EROFS {
		t.Errorf("open for writing: %v", code)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "open/public")); err != nil || string(b) != "of open/public" {
		t.Errorf("afterwards: %q, %v", b, err)
	}
}

func TestLinuxIsSparedOpenAndFlush(t *testing.T) {
	c := serve(t, Export{Dir: tree(t)})
	id, _ := c.path("open/public")
	if _, code := c.call(opOpen, id, make([]byte, 8), 64); code != unix.ENOSYS {
		t.Errorf("open: %v", code)
	}
	if _, code := c.call(opFlush, id, make([]byte, 24), 64); code != unix.ENOSYS {
		t.Errorf("flush: %v", code)
	}
}

func TestManyFilesWithFewDescriptors(t *testing.T) {
	dir := t.TempDir()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	const files = 3 * cachedFDs
	for i := range files {
		sub := filepath.Join(dir, "d"+strings.Repeat("x", i%50+1))
		os.MkdirAll(sub, 0o755)
		if err := os.WriteFile(filepath.Join(sub, strings.Repeat("f", i/50+1)), bytes.Repeat([]byte{byte(i)}, i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c := serve(t, Export{Dir: dir})
	for i := range files {
		id, a := c.path("d" + strings.Repeat("x", i%50+1) + "/" + strings.Repeat("f", i/50+1))
		if id == 0 || a.Size != uint64(i) {
			t.Fatalf("file %d: node %d, size %d", i, id, a.Size)
		}
		if b, code := c.read(id, 0, 4096); code != 0 || len(b) != i || i > 0 && b[0] != byte(i) {
			t.Fatalf("file %d: %d bytes, %v", i, len(b), code)
		}
	}
	if n := len(c.s.fds.files); n > cachedFDs {
		t.Errorf("%d descriptors are open", n)
	}
}

func TestReplacedFileIsStale(t *testing.T) {
	dir := tree(t)
	c := serve(t, Export{Dir: dir})
	id, _ := c.path("open/public")
	p := filepath.Join(dir, "open/public")
	if err := os.Rename(p, p+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte("another"), 0o644); err != nil {
		t.Fatal(err)
	}
	if b, code := c.read(id, 0, 100); code != unix.ESTALE {
		t.Errorf("read of the old node: %q, %v", b, code)
	}
}

func FuzzHandle(f *testing.F) {
	dir := tree(f)
	f.Add(uint32(opLookup), uint64(1), []byte("open\x00"))
	f.Add(uint32(opReaddirplus), uint64(1), make([]byte, 40))
	f.Add(uint32(opRead), uint64(2), bytes.Repeat([]byte{0xFF}, 40))
	f.Fuzz(func(t *testing.T, op uint32, node uint64, body []byte) {
		c := serve(t, Export{Dir: dir})
		c.lookup(1, "open")
		c.call(op, node, body, 4096)
		if id, _ := c.lookup(1, "open"); id == 0 {
			t.Error("open is gone")
		}
	})
}
