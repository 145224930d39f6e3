package files

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/confine"
	"vitrine.dev/vitrine/internal/confine/confinetest"
	"vitrine.dev/vitrine/internal/helper"
	"vitrine.dev/vitrine/internal/hostfs"
	"vitrine.dev/vitrine/internal/machine/virtio"
	"vitrine.dev/vitrine/internal/machine/virtio/fs"
	"vitrine.dev/vitrine/internal/mem"
)

func TestMain(m *testing.M) {
	helper.Run(map[string]helper.Main{Kind: Main})
	confinetest.Child(map[string]confinetest.Rights{
		"root":  func(dir string) confine.Rights { return rightsFor(hostfs.Export{Dir: dir + "/in"}) },
		"share": func(dir string) confine.Rights { return rightsFor(hostfs.Export{Dir: dir + "/in", Rule: hostfs.Owner}) },
		"writable": func(dir string) confine.Rights {
			return rightsFor(hostfs.Export{Dir: dir + "/in", Rule: hostfs.Owner, Writable: true})
		},
		"empty": func(dir string) confine.Rights {
			return rightsFor(hostfs.Export{Dir: dir, Empty: []string{dir + "/out"}})
		},
	})
	os.Exit(m.Run())
}

func rightsFor(e hostfs.Export) confine.Rights {
	s, err := hostfs.New(e)
	if err != nil {
		panic(err)
	}
	return rights(&setup{[]hostfs.Export{e}, confine.UserOf(os.Getpid())}, []*hostfs.Server{s})
}

func TestTheServerOfTheRootOpensOnlyWhatIsShared(t *testing.T) {
	confinetest.Check(t, "root", "read inside", "list inside", "statx", "readlink")
}

func TestTheServerOfAShareOpensOnlyThat(t *testing.T) {
	confinetest.Check(t, "share", "read inside", "list inside", "statx", "readlink")
}

func TestTheServerOfAWritableShareChangesOnlyThat(t *testing.T) {
	confinetest.Check(t, "writable", "read inside", "list inside", "write inside", "make inside", "statx", "readlink")
}

func TestWhatIsShownEmptyCanNotBeOpened(t *testing.T) {
	confinetest.Check(t, "empty", "read inside", "list inside", "statx", "readlink")
}

// A rig is a helper that serves one directory, and the memory of the guest.
type rig struct {
	t     testing.TB
	ram   *mem.Memory
	p     *helper.Process
	share *Share

	answers map[uint32]chan uint64
}

func serveDir(t *testing.T, e hostfs.Export) *rig {
	t.Helper()
	ram, err := mem.New(16 << 20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ram.Close() })
	p, shares, err := Start(helper.Options{Guest: "test", Log: func(s string) { t.Log(s) }}, ram.FD(), confine.UserOf(os.Getpid()), []hostfs.Export{e})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, ram: ram, p: p, share: shares[0], answers: map[uint32]chan uint64{}}
	for slot := range uint32(64) {
		r.answers[slot] = make(chan uint64, 1)
	}
	r.share.Start(func(slot uint32, n uint64) { r.answers[slot] <- n })
	t.Cleanup(func() { r.share.Close(); p.Close() })
	if _, err := p.Ready(); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, 64)
	le.PutUint32(body, 7)
	le.PutUint32(body[4:], 36)
	if _, errno, err := r.call(0, 26, 0, body); errno != 0 || err != nil {
		t.Fatalf("FUSE_INIT: %v, %v", errno, err)
	}
	return r
}

// room is what a slot has of the guest's memory: the request at its beginning, the answer half way.
const room = 64 << 10

// segments puts a FUSE request where the guest would and gives its buffers: header and body apart, the answer in two.
func (r *rig) segments(slot, op uint32, node uint64, body []byte) (in, out []virtio.Segment) {
	var head [40]byte
	le.PutUint32(head[:], uint32(len(head)+len(body)))
	le.PutUint32(head[4:], op)
	le.PutUint64(head[8:], uint64(slot)+100)
	le.PutUint64(head[16:], node)
	at := mem.Addr(slot) * room
	r.ram.WriteAt(head[:], at)
	r.ram.WriteAt(body, at+40)
	return []virtio.Segment{{Addr: at, Len: 40}, {Addr: at + 40, Len: uint32(len(body))}},
		[]virtio.Segment{{Addr: at + room/2, Len: 16}, {Addr: at + room/2 + 16, Len: room/2 - 16}}
}

func (r *rig) call(slot, op uint32, node uint64, body []byte) ([]byte, unix.Errno, error) {
	in, out := r.segments(slot, op, node, body)
	if err := r.share.submit(slot, in, out); err != nil {
		return nil, 0, err
	}
	n := <-r.answers[slot]
	if n == fs.Failed || n < 16 {
		return nil, 0, fmt.Errorf("answer of %d bytes", n)
	}
	b := make([]byte, n)
	r.ram.ReadAt(b, mem.Addr(slot)*room+room/2)
	return b[16:], unix.Errno(-int32(le.Uint32(b[4:]))), nil
}

// readFile looks a file up in the root and reads it.
func (r *rig) readFile(slot uint32, name string) (string, error) {
	b, errno, err := r.call(slot, 1, 1, append([]byte(name), 0))
	if err != nil || errno != 0 || len(b) < 8 {
		return "", fmt.Errorf("lookup: %w, %v", errno, err)
	}
	var in [40]byte
	le.PutUint32(in[16:], 16<<10)
	b, errno, err = r.call(slot, 15, le.Uint64(b), in[:])
	if err != nil || errno != 0 {
		return "", fmt.Errorf("read: %w, %v", errno, err)
	}
	return string(b), nil
}

func public(t *testing.T) string {
	dir := t.TempDir()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		os.Chmod(d, 0o755)
	}
	for i := range 32 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("file", i)), bytes.Repeat([]byte{byte('a' + i)}, 1000*i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFilesAreReadIntoTheGuestsMemory(t *testing.T) {
	r := serveDir(t, hostfs.Export{Dir: public(t)})
	for i := range 16 {
		got, err := r.readFile(1, fmt.Sprint("file", i))
		if want := strings.Repeat(string(rune('a'+i)), 1000*i); err != nil || got != want {
			t.Errorf("file %d: %d bytes, %v", i, len(got), err)
		}
	}
}

func TestRequestsAtOnceAreAllAnswered(t *testing.T) {
	r := serveDir(t, hostfs.Export{Dir: public(t)})
	var all sync.WaitGroup
	for slot := range uint32(16) {
		all.Go(func() {
			for i := range 200 {
				i = (i + int(slot)) % 16
				if got, err := r.readFile(slot, fmt.Sprint("file", i)); err != nil || len(got) != 1000*i {
					t.Errorf("slot %d, file %d: %d bytes, %v", slot, i, len(got), err)
					return
				}
			}
		})
	}
	all.Wait()
}

func TestSecretsStayOutOfTheRootsServer(t *testing.T) {
	dir := public(t)
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := serveDir(t, hostfs.Export{Dir: dir})
	if got, err := r.readFile(0, "secret"); err == nil {
		t.Errorf("read %q", got)
	}
}

func TestRequestsOfAServerThatDiesFail(t *testing.T) {
	r := serveDir(t, hostfs.Export{Dir: public(t)})
	unix.Kill(pid(t, r.p), unix.SIGSTOP)
	if err := unix.Waitid(unix.P_PID, pid(t, r.p), nil, unix.WSTOPPED|unix.WNOWAIT, nil); err != nil { // all threads stand still
		t.Fatal(err)
	}
	in, out := r.segments(1, 1, 1, []byte("file1\x00"))
	if err := r.share.submit(1, in, out); err != nil {
		t.Fatal(err)
	}
	in, out = r.segments(2, 1, 1, []byte("file2\x00"))
	if err := r.share.submit(2, in, out); err != nil {
		t.Fatal(err)
	}
	unix.Kill(pid(t, r.p), unix.SIGKILL)
	for slot := range uint32(2) {
		if n := <-r.answers[slot+1]; n != fs.Failed {
			t.Errorf("slot %d: answer of %d bytes", slot+1, n)
		}
	}
	<-r.p.Done()
	if err := r.share.submit(3, in, out); err == nil {
		t.Error("a request to nobody is taken")
	}
}

func pid(t *testing.T, p *helper.Process) int {
	t.Helper()
	n := p.PID()
	if n <= 1 {
		t.Fatalf("process %d", n)
	}
	return n
}

func TestARequestOutsideOfTheMemoryEndsTheServer(t *testing.T) {
	r := serveDir(t, hostfs.Export{Dir: public(t)})
	_, out := r.segments(1, 1, 1, nil)
	if err := r.share.submit(1, []virtio.Segment{{Addr: 1 << 40, Len: 40}}, out); err != nil {
		t.Fatal(err)
	}
	if n := <-r.answers[1]; n != fs.Failed {
		t.Errorf("answer of %d bytes", n)
	}
}

func TestRequestsAreReadAsTheyAreWritten(t *testing.T) {
	ram, err := mem.New(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	defer ram.Close()
	var r request
	for _, c := range []struct{ in, out int }{{0, 0}, {1, 0}, {0, 1}, {2, 3}, {virtio.MaxChain - 1, 1}} {
		seg := func(n int) (all []virtio.Segment) {
			for i := range n {
				all = append(all, virtio.Segment{Addr: mem.Addr(i * 16), Len: uint32(i + 1)})
			}
			return all
		}
		b := appendRequest(nil, 7, seg(c.in), seg(c.out))
		if len(b) > maxRequest {
			t.Errorf("%d and %d segments: %d bytes, the limit is %d", c.in, c.out, len(b), maxRequest)
		}
		if err := r.parse(ram, b); err != nil || r.slot != 7 || len(r.in) != c.in || len(r.out) != c.out {
			t.Errorf("%d and %d segments: slot %d, %d and %d, %v", c.in, c.out, r.slot, len(r.in), len(r.out), err)
		}
		if c.in > 1 && len(r.in[1]) != 2 {
			t.Errorf("the second segment has %d bytes, want 2", len(r.in[1]))
		}
	}
}

func FuzzRequest(f *testing.F) {
	ram, err := mem.New(1 << 20)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { ram.Close() })
	f.Add(appendRequest(nil, 1, []virtio.Segment{{Addr: 0, Len: 40}}, []virtio.Segment{{Addr: 1<<20 - 1, Len: 1}}))
	f.Add(binary.LittleEndian.AppendUint64(nil, ^uint64(0)))
	f.Fuzz(func(t *testing.T, b []byte) {
		var r request
		if r.parse(ram, b) != nil {
			return
		}
		if len(r.in)+len(r.out) > len(b)/segmentSize {
			t.Errorf("%d segments of %d bytes", len(r.in)+len(r.out), len(b))
		}
		for _, p := range append(r.in, r.out...) {
			if len(p) > 1<<20 {
				t.Errorf("%d bytes of 1 MiB", len(p))
			}
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("12345678"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, ok := parseAnswer(b); ok != (len(b) == answerSize) {
			t.Errorf("%d bytes: %v", len(b), ok)
		}
	})
}
