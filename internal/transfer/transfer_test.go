package transfer

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sample makes a tree with what is easily lost.
func sample(t *testing.T) string {
	t.Helper()
	top := filepath.Join(t.TempDir(), "top")
	for _, d := range []string{"", "sub", "sub/deep", "closed"} {
		if err := os.Mkdir(filepath.Join(top, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(top, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("plain", "text", 0o640)
	write("two\nlines \xff", "odd", 0o600)
	write("sub/deep/run", "#!/bin/sh\n", 0o755)
	write("closed/in", "x", 0o400)
	write("empty", "", 0o644)
	f, err := os.Create(filepath.Join(top, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	f.Truncate(1 << 30)
	f.WriteAt([]byte("island"), 512<<20)
	f.Close()
	for link, to := range map[string]string{"up": "../../etc/passwd", "sub/here": "deep/run", "dangling": "nowhere"} {
		if err := os.Symlink(to, filepath.Join(top, link)); err != nil {
			t.Fatal(err)
		}
	}
	unix.Mkfifo(filepath.Join(top, "fifo"), 0o600)
	past := time.Unix(1_000_000_000, 0)
	for _, name := range []string{"plain", "sub"} {
		os.Chtimes(filepath.Join(top, name), past, past)
	}
	os.Chmod(filepath.Join(top, "closed"), 0o555)
	t.Cleanup(func() { os.Chmod(filepath.Join(top, "closed"), 0o755) })
	return top
}

func carry(t *testing.T, from, to string) error {
	t.Helper()
	var stream bytes.Buffer
	if err := Send(&stream, from); err != nil {
		t.Fatal(err)
	}
	if stream.Len() > 8<<20 {
		t.Errorf("the stream has %d bytes: holes were sent", stream.Len())
	}
	return Receive(&stream, to)
}

func TestATreeArrivesAsItWas(t *testing.T) {
	top := sample(t)
	dest := t.TempDir()
	if err := carry(t, top, dest); err != nil {
		t.Fatal(err)
	}
	got := filepath.Join(dest, "top")
	t.Cleanup(func() { os.Chmod(filepath.Join(got, "closed"), 0o755) })
	for name, want := range map[string]string{"plain": "text", "two\nlines \xff": "odd", "sub/here": "#!/bin/sh\n", "closed/in": "x", "empty": ""} {
		text, err := os.ReadFile(filepath.Join(got, name))
		if err != nil || string(text) != want {
			t.Errorf("%q: %q, %v; want %q", name, text, err, want)
		}
	}
	for name, want := range map[string]os.FileMode{"plain": 0o640, "sub/deep/run": 0o755, "closed": os.ModeDir | 0o555} {
		if fi, err := os.Stat(filepath.Join(got, name)); err != nil || fi.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", name, fi.Mode(), err, want)
		}
	}
	for _, name := range []string{"plain", "sub"} {
		if fi, err := os.Stat(filepath.Join(got, name)); err != nil || fi.ModTime().Unix() != 1_000_000_000 {
			t.Errorf("%s: %v, %v", name, fi.ModTime(), err)
		}
	}
	if to, err := os.Readlink(filepath.Join(got, "up")); err != nil || to != "../../etc/passwd" {
		t.Errorf("a link: %q, %v", to, err)
	}
	if _, err := os.Lstat(filepath.Join(got, "fifo")); err == nil {
		t.Error("a FIFO was made")
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(got, "sparse"), &st); err != nil || st.Size != 1<<30 || st.Blocks*512 > 16<<20 {
		t.Errorf("sparse: %d bytes in %d blocks, %v", st.Size, st.Blocks, err)
	}
	island := make([]byte, 6)
	if f, err := os.Open(filepath.Join(got, "sparse")); err == nil {
		f.ReadAt(island, 512<<20)
		f.Close()
	}
	if string(island) != "island" {
		t.Errorf("in the hole: %q", island)
	}
	// A second time over the first.
	if err := carry(t, top, dest); err != nil && os.Geteuid() == 0 {
		t.Error(err)
	}
}

func TestAFileGoesWhereItIsSent(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, []byte("new"), 0o644)
	dir := t.TempDir()
	old := filepath.Join(dir, "old")
	os.WriteFile(old, []byte("something longer"), 0o600)
	for dest, want := range map[string]string{dir: "file", old: "old", filepath.Join(dir, "renamed"): "renamed"} {
		if err := carry(t, file, dest); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(filepath.Join(dir, want)); err != nil || string(text) != "new" {
			t.Errorf("%s: %q, %v", want, text, err)
		}
	}
	if err := carry(t, file, filepath.Join(dir, "no/such/place")); err == nil {
		t.Error("a file went to a directory that is not there")
	}
}

func TestTheSendersReasonArrives(t *testing.T) {
	var stream bytes.Buffer
	if err := Send(&stream, "/no/such/thing"); err == nil {
		t.Error("nothing was sent without an error")
	}
	if err := Receive(&stream, t.TempDir()); err == nil || !strings.Contains(err.Error(), "/no/such/thing: no such file") {
		t.Errorf("got %v", err)
	}
}

// stream makes one by hand.
func stream(fn func(e *encoder)) io.Reader {
	var b bytes.Buffer
	e := newEncoder(&b)
	fn(e)
	e.w.Flush()
	return &b
}

func TestAHostileStreamWritesNowhereElse(t *testing.T) {
	file := func(e *encoder, path, text string) {
		e.kind(kindFile)
		e.string(path)
		e.number(0o644)
		e.number(0)
		e.number(int64(len(text)))
		e.number(int64(len(text)))
		e.number(0)
		e.w.WriteString(text)
		e.number(0)
	}
	top := func(e *encoder, name string) {
		e.kind(kindName)
		e.string(name)
		e.kind(kindDir)
		e.string("")
		e.number(0o755)
		e.number(0)
	}
	link := func(e *encoder, path, to string) {
		e.kind(kindLink)
		e.string(path)
		e.number(0)
		e.string(to)
	}
	for name, fn := range map[string]func(e *encoder){
		"a path up":            func(e *encoder) { top(e, "t"); file(e, "../victim", "bad") },
		"an absolute path":     func(e *encoder) { top(e, "t"); file(e, "/victim", "bad") },
		"a name up":            func(e *encoder) { top(e, ".."); file(e, "victim", "bad") },
		"a name with a slash":  func(e *encoder) { top(e, "x/../.."); file(e, "victim", "bad") },
		"a link to a file":     func(e *encoder) { top(e, "t"); link(e, "l", "../victim"); file(e, "l", "good"); e.kind(kindEnd) },
		"a link to a dir":      func(e *encoder) { top(e, "t"); link(e, "l", ".."); file(e, "l/victim", "bad") },
		"a top that is a link": func(e *encoder) { e.kind(kindName); e.string("t"); link(e, "", ".."); file(e, "victim", "bad") },
		"two tops":             func(e *encoder) { e.kind(kindName); e.string("victim2"); file(e, "", "x"); file(e, "", "bad") },
		"bytes behind the end": func(e *encoder) {
			top(e, "t")
			e.kind(kindFile)
			e.string("f")
			e.number(0o644)
			e.number(0)
			e.number(4)
			e.number(4)
			e.number(1 << 40)
		},
	} {
		dir := t.TempDir()
		victim := filepath.Join(dir, "victim")
		os.WriteFile(victim, []byte("intact"), 0o644)
		dest := filepath.Join(dir, "dest")
		os.Mkdir(dest, 0o755)
		os.WriteFile(filepath.Join(dest, "victim"), []byte("intact"), 0o644)
		err := Receive(stream(fn), dest)
		if err == nil && name != "a link to a file" {
			t.Errorf("%s: no error", name)
		}
		for _, v := range []string{victim, filepath.Join(dest, "victim")} {
			if text, _ := os.ReadFile(v); string(text) != "intact" {
				t.Errorf("%s: %s is %q", name, v, text)
			}
		}
	}
}

func TestACutStreamIsAnError(t *testing.T) {
	var whole bytes.Buffer
	if err := Send(&whole, filepath.Dir(filepath.Join(sample(t), "plain"))); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, 5, whole.Len() / 2, whole.Len() - 1} {
		if err := Receive(bytes.NewReader(whole.Bytes()[:n]), t.TempDir()); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes of %d: %v", n, whole.Len(), err)
		}
	}
}

func FuzzReceive(f *testing.F) {
	f.Add([]byte("N\x02tD\x00\x00\x00E"))
	f.Add([]byte("N\x02tF\x00\x00\x00\x08\x08\x00text\x00E"))
	f.Fuzz(func(t *testing.T, p []byte) {
		dir := t.TempDir()
		dest := filepath.Join(dir, "dest")
		os.Mkdir(dest, 0o755)
		Receive(bytes.NewReader(p), dest)
		names, err := os.ReadDir(dir)
		if err != nil || len(names) != 1 {
			t.Errorf("beside dest: %v, %v", names, err)
		}
		os.Chmod(dest, 0o755)
	})
}
