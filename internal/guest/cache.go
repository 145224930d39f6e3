package guest

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Cache keeps what was decoded of kernels, so that the second look at one costs little, at whichever guest runs it.
//
// A guest can claim to be any kernel. So nothing is taken by its name: what is kept has beside it the very bytes that it was made of, and is
// used only where a guest's memory, where its kernel is mapped now, holds the same. The nil Cache keeps nothing.
type Cache struct {
	dir string

	mu    sync.Mutex // guards files
	files map[string]*keptFile
}

// NewCache keeps files in a directory of the user's own, which is made when first needed.
func NewCache(dir string) *Cache { return &Cache{dir: dir, files: map[string]*keptFile{}} }

// Bounds of a cache: kernels, of which the oldest go, and bytes of a file.
const (
	maxKept     = 16
	maxKeptFile = 256 << 20
)

// A keptFile is what is kept of one kernel: numbers, and sections of bytes. It is mapped, and stays so.
type keptFile struct {
	numbers  []uint64
	sections [][]byte
}

// The format: magic, how many numbers and sections, the numbers, the sections' sizes, the sections, each from a multiple of 8 on.
const keptMagic = "vitrine kernel 1"

func (f *keptFile) encode() []byte {
	b := append([]byte(nil), keptMagic...)
	b = le.AppendUint32(b, uint32(len(f.numbers)))
	b = le.AppendUint32(b, uint32(len(f.sections)))
	for _, n := range f.numbers {
		b = le.AppendUint64(b, n)
	}
	total := 0
	for _, s := range f.sections {
		b = le.AppendUint64(b, uint64(len(s)))
		total += len(s) + 8
	}
	b = slices.Grow(b, total)
	for _, s := range f.sections {
		b = append(b, s...)
		b = append(b, make([]byte, -len(b)&7)...)
	}
	return b
}

var errKept = errors.New("guest: a file of the cache is damaged")

func decodeKept(b []byte) (*keptFile, error) {
	if len(b) < len(keptMagic)+8 || string(b[:len(keptMagic)]) != keptMagic {
		return nil, errKept
	}
	head := b[len(keptMagic):]
	numbers, sections := int(le.Uint32(head)), int(le.Uint32(head[4:]))
	at := len(keptMagic) + 8
	if numbers > 64 || sections > 64 || len(b)-at < 8*(numbers+sections) {
		return nil, errKept
	}
	f := &keptFile{}
	for range numbers {
		f.numbers = append(f.numbers, le.Uint64(b[at:]))
		at += 8
	}
	next := at + 8*sections
	for range sections {
		n := le.Uint64(b[at:])
		at += 8
		if n > uint64(len(b)-next) {
			return nil, errKept
		}
		f.sections = append(f.sections, b[next:next+int(n):next+int(n)])
		next = min(len(b), (next+int(n)+7)&^7)
	}
	return f, nil
}

// open maps a file of the cache.
func (c *Cache) open(name string) (*keptFile, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f, ok := c.files[name]; ok {
		return f, nil
	}
	file, err := os.Open(filepath.Join(c.dir, name))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if own, ok := st.Sys().(*syscall.Stat_t); ok && own.Uid != uint32(os.Geteuid()) || st.Size() == 0 || st.Size() > maxKeptFile || !st.Mode().IsRegular() {
		return nil, errKept
	}
	b, err := unix.Mmap(int(file.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return nil, err
	}
	f, err := decodeKept(b)
	if err != nil {
		unix.Munmap(b)
		return nil, err
	}
	c.files[name] = f
	return f, nil
}

// keep writes a file, whole or not at all. That it cannot be kept is nobody's concern: the next look takes longer.
func (c *Cache) keep(name string, f *keptFile) {
	if os.MkdirAll(c.dir, 0o700) != nil {
		return
	}
	c.evict()
	tmp, err := os.CreateTemp(c.dir, ".new-")
	if err != nil {
		return
	}
	_, err = tmp.Write(f.encode())
	if err = errors.Join(err, tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), filepath.Join(c.dir, name))
	}
	if err != nil {
		os.Remove(tmp.Name())
		return
	}
	c.mu.Lock()
	delete(c.files, name)
	c.mu.Unlock()
}

// evict makes room, and removes what a crash left behind.
func (c *Cache) evict() {
	entries, _ := os.ReadDir(c.dir)
	type aged struct {
		name string
		at   time.Time
	}
	var all []aged
	for _, e := range entries {
		info, err := e.Info()
		switch {
		case err != nil:
		case strings.HasPrefix(e.Name(), ".new-"):
			if time.Since(info.ModTime()) > time.Hour {
				os.Remove(filepath.Join(c.dir, e.Name()))
			}
		default:
			all = append(all, aged{e.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(all, func(a, b aged) int { return cmp.Compare(a.at.UnixNano(), b.at.UnixNano()) })
	for i := range len(all) - 2*maxKept + 2 { // symbols and types
		os.Remove(filepath.Join(c.dir, all[i].name))
	}
}

// keyOf names a kernel's files: where its index of tokens is, and what it holds, which is another in each build.
func keyOf(off uint64, index []byte) string {
	sum := sha256.Sum256(index)
	return strconv.FormatUint(off, 16) + "-" + hex.EncodeToString(sum[:12])
}

const (
	symbolsSuffix = ".symbols"
	typesSuffix   = ".types"
)

// symbols gives the symbol table of a kernel that is kept, and its key: the one whose bytes are the image's.
func (c *Cache) symbols(m image, text uint64) (*decoded, string) {
	if c == nil {
		return nil, ""
	}
	names, _ := os.ReadDir(c.dir)
	for _, e := range names {
		key, ok := strings.CutSuffix(e.Name(), symbolsSuffix)
		if !ok {
			continue
		}
		place, _, _ := strings.Cut(key, "-")
		off, err := strconv.ParseUint(place, 16, 64)
		if err != nil {
			continue
		}
		if index := m.view(off, indexSize); len(index) != indexSize || keyOf(off, index) != key {
			continue
		}
		if f, err := c.open(e.Name()); err == nil {
			if d, ok := f.symbols(m, text); ok {
				return d, key
			}
		}
	}
	return nil, ""
}

const indexSize = 512

// The numbers of a file of symbols.
const (
	numSymbols = iota
	numFixed
	numBaseAt
	numBase
	numParts // then offset and size of each, whose bytes are the sections behind the first four
)

func (c *Cache) keepSymbols(m image, d *decoded) string {
	index := m.read(d.index.off, d.index.size)
	if c == nil || len(index) != indexSize {
		return ""
	}
	f := &keptFile{numbers: []uint64{uint64(d.n), uint64(d.fixed), d.baseAt, d.base}, sections: [][]byte{d.addrs, d.ends, d.names, d.byName}}
	for _, p := range d.parts {
		f.numbers = append(f.numbers, p.off, p.size)
		f.sections = append(f.sections, m.read(p.off, p.size))
	}
	key := keyOf(d.index.off, index)
	c.keep(key+symbolsSuffix, f)
	return key
}

// symbols gives the table, if the image's bytes are those that it was made of, and its base is where it was.
func (f *keptFile) symbols(m image, text uint64) (*decoded, bool) {
	if len(f.sections) < 5 || len(f.numbers) != numParts+2*(len(f.sections)-4) {
		return nil, false
	}
	d := &decoded{baseAt: f.numbers[numBaseAt], base: f.numbers[numBase], table: &table{
		n: int(f.numbers[numSymbols]), fixed: int(f.numbers[numFixed]), text: text,
		addrs: f.sections[0], ends: f.sections[1], names: f.sections[2], byName: f.sections[3],
	}}
	if d.n < 0 || d.n > maxSymbols || len(d.addrs) != 8*d.n || len(d.ends) != 4*d.n {
		return nil, false
	}
	if d.baseAt != 0 {
		if b := m.view(d.baseAt, 8); len(b) != 8 || le.Uint64(b)-text != d.base {
			return nil, false
		}
	}
	for i, want := range f.sections[4:] {
		if !equalAt(m, f.numbers[numParts+2*i], want) {
			return nil, false
		}
	}
	return d, true
}

// equalAt tells whether the image holds want at off.
func equalAt(m image, off uint64, want []byte) bool {
	const step = 1 << 20
	for len(want) > 0 {
		n := min(len(want), step)
		if !bytes.Equal(m.view(off, uint64(n)), want[:n]) {
			return false
		}
		want, off = want[n:], off+uint64(n)
	}
	return true
}

// types gives a kernel's BTF that is kept, if it was made of the bytes that the image has at off.
func (c *Cache) types(key string, m image, at span) *BTF {
	if c == nil || key == "" {
		return nil
	}
	f, err := c.open(key + typesSuffix)
	if err != nil || len(f.sections) != 3 || uint64(len(f.sections[0])) != at.size || !equalAt(m, at.off, f.sections[0]) {
		return nil
	}
	t, err := openBTF(f.sections[0], nil)
	if err != nil {
		return nil
	}
	t.at, t.structs = f.sections[1], f.sections[2]
	return t
}

func (c *Cache) keepTypes(key string, raw []byte, t *BTF) {
	if c != nil && key != "" {
		c.keep(key+typesSuffix, &keptFile{sections: [][]byte{raw, t.at, t.structs}})
	}
}

// DefaultCache is the user's, in the directory for such things; where there is none, nothing is kept.
func DefaultCache() *Cache {
	dir, err := os.UserCacheDir()
	if err != nil {
		return nil
	}
	return NewCache(filepath.Join(dir, "vitrine", "seen"))
}
