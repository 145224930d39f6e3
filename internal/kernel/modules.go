package kernel

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"vitrine.dev/vitrine/internal/initramfs"
	"vitrine.dev/vitrine/internal/kernel/decompress"
)

const (
	maxModule = 64 << 20 // bytes of a module, decompressed
	maxTree   = 400_000  // files looked at in a modules tree; a kernel's build tree has 100,000
)

// Modules is a kernel's tree of modules, as `make modules_install` makes it (/lib/modules/RELEASE) or as a kernel's build tree has it.
// The zero value knows of no module. Methods may be called by one goroutine at a time.
type Modules struct {
	fsys    fs.FS
	builtin map[string]bool
	files   map[string]string // by canonical name: the path in fsys
	walked  bool
	sums    map[string]string // SHA-256 in hexadecimal by path, where the tree is the cache's
	where   string
}

// canonical is a module's name as the kernel has it: in file names and lists - and _ are the same.
func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

// moduleName is the canonical name of a module's file, or "".
func moduleName(file string) string {
	base := path.Base(file)
	for _, end := range []string{".ko", ".ko.xz", ".ko.zst", ".ko.gz"} {
		if name, ok := strings.CutSuffix(base, end); ok {
			return canonical(name)
		}
	}
	return ""
}

// OpenModules reads what the tree at dir says of itself: modules.builtin and modules.order; without the latter the tree is walked
// once. dir may also be what INSTALL_MOD_PATH was: the tree is then below lib/modules, of the given release or the only one.
func OpenModules(dir, release string) (*Modules, error) {
	st, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("modules %s: %w", dir, reason(err))
	}
	if !st.IsDir() {
		return nil, fmt.Errorf("modules %s: is not a directory", dir)
	}
	for _, below := range []string{"lib/modules", "usr/lib/modules"} {
		all, _ := filepath.Glob(filepath.Join(dir, below, "*"))
		if one := filepath.Join(dir, below, release); release != "" && isDir(one) {
			dir = one
		} else if len(all) == 1 && isDir(all[0]) {
			dir = all[0]
		}
	}
	m := &Modules{fsys: os.DirFS(dir), where: dir, builtin: map[string]bool{}, files: map[string]string{}}
	if err := m.lines("modules.builtin", func(line string) {
		if name := moduleName(line); name != "" {
			m.builtin[name] = true
		}
	}); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("modules %s: %w", dir, reason(err))
	}
	if err := m.lines("modules.order", func(line string) {
		if object, ok := strings.CutSuffix(line, ".o"); ok { // in build trees since f65a486821cf (v6.3)
			line = object + ".ko"
		}
		line = path.Clean(line)
		if name := moduleName(line); name != "" && fs.ValidPath(line) {
			m.files[name] = line
		}
	}); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("modules %s: %w", dir, reason(err))
	}
	if !m.Known() {
		if err := m.walk(); err != nil {
			return nil, fmt.Errorf("modules %s: %w", dir, reason(err))
		}
		if !m.Known() {
			return nil, fmt.Errorf("modules %s: no modules.order, no modules.builtin, no module: not a modules tree", dir)
		}
	}
	return m, nil
}

func isDir(p string) bool {
	st, err := os.Stat(p)
	return err == nil && st.IsDir()
}

// Known tells whether anything is known of the kernel's drivers. If not, they may all be built in.
func (m *Modules) Known() bool { return len(m.builtin)+len(m.files) > 0 }

func (m *Modules) lines(name string, fn func(string)) error {
	f, err := m.fsys.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	sc := bufio.NewScanner(io.LimitReader(f, 16<<20))
	for sc.Scan() {
		if line := strings.TrimSpace(sc.Text()); line != "" {
			fn(line)
		}
	}
	return sc.Err()
}

// walk finds the modules that no list names: of other sources, of trees without lists.
func (m *Modules) walk() error {
	m.walked = true
	n := 0
	return fs.WalkDir(m.fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if n++; n > maxTree {
			return fmt.Errorf("more than %d files", maxTree)
		}
		if err != nil || !d.Type().IsRegular() {
			return nil // what cannot be read is missed when it is asked for
		}
		if name := moduleName(p); name != "" && m.files[name] == "" {
			m.files[name] = p
		}
		return nil
	})
}

// Has tells whether the driver is built in or a module.
func (m *Modules) Has(name string) bool {
	name = canonical(name)
	return m.builtin[name] || m.find(name) != ""
}

// find gives the module's file, with the ending it has on disk.
func (m *Modules) find(name string) string {
	if m.fsys == nil {
		return ""
	}
	for {
		if p := m.files[name]; p != "" {
			p = p[:strings.LastIndex(p, ".ko")+3]
			for _, end := range []string{"", ".xz", ".zst", ".gz"} {
				if st, err := fs.Stat(m.fsys, p+end); err == nil && st.Mode().IsRegular() {
					return p + end
				}
			}
			delete(m.files, name) // listed, but not there
		}
		if m.walked || m.walk() != nil {
			return ""
		}
	}
}

// read gives a module's content, decompressed, and what it says of itself.
func (m *Modules) read(file string) ([]byte, *modinfo, error) {
	p, err := fs.ReadFile(m.fsys, file)
	if err != nil {
		return nil, nil, reason(err)
	}
	if err := checkSum(m.sums, file, p); err != nil {
		return nil, nil, err
	}
	if _, packed := decompress.Detect(p[:min(len(p), 9)]); packed {
		if p, err = decompress.All(p, maxModule); err != nil {
			return nil, nil, err
		}
	}
	info, err := parseModinfo(p)
	return p, info, err
}

// Closure gives the modules that have to be loaded for the drivers named, each after those it depends on, decompressed. What is built in
// needs none. Drivers that are neither are missing, with who asked for them.
func (m *Modules) Closure(names []string) (load []initramfs.Module, missing []string, err error) {
	c := closure{m: m, seen: map[string]bool{}}
	for _, name := range names {
		c.add(canonical(name), "", true)
	}
	return c.load, c.missing, c.err
}

type closure struct {
	m       *Modules
	seen    map[string]bool
	load    []initramfs.Module
	missing []string
	err     error
}

// add appends name's module behind its dependencies. One that is not required may be missing.
func (c *closure) add(name, by string, required bool) {
	if c.err != nil || c.seen[name] || c.m.builtin[name] {
		return
	}
	file := c.m.find(name)
	if file == "" {
		if required {
			c.seen[name] = true
			if by != "" {
				name += " (for " + by + ")"
			}
			c.missing = append(c.missing, name)
		}
		return
	}
	c.seen[name] = true
	data, info, err := c.m.read(file)
	if err != nil {
		c.err = fmt.Errorf("module %s: %w", filepath.Join(c.m.where, file), err)
		return
	}
	for _, d := range info.pre {
		c.add(d, name, false)
	}
	for _, d := range info.depends {
		c.add(d, name, true)
	}
	c.load = append(c.load, initramfs.Module{Name: name, Data: data})
	for _, d := range info.post {
		c.add(d, name, false)
	}
}

// reason is what went wrong in a file error, whose path is said already.
func reason(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	var le *os.LinkError
	if errors.As(err, &le) {
		return le.Err
	}
	return err
}
