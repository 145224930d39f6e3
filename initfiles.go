package vitrine

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"vitrine.dev/vitrine/internal/initramfs"
)

// initProgram reads the program that becomes the guest's init, without what is not needed to run it, and the libraries that it needs: a Go
// program built where there is a C compiler is linked to the C library.
func initProgram(path string) ([]byte, []initramfs.File, error) {
	if path == "" {
		path = "/proc/self/exe"
	}
	exe, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("the guest's init: %w", err)
	}
	libs, err := libraries(exe)
	if err != nil {
		return nil, nil, fmt.Errorf("the guest's init %s: %w", path, err)
	}
	exe, err = initramfs.StripELF(exe)
	return exe, libs, err
}

// libraryDirs is where libraries are on Debian and Fedora, as the dynamic linker looks for them itself.
var libraryDirs = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/lib", "/usr/lib"}

// libraries gives the dynamic linker of exe and all libraries that it would load.
func libraries(exe []byte) ([]initramfs.File, error) {
	interp, needed, err := dynamic(exe)
	if err != nil || interp == "" {
		return nil, err
	}
	data, err := os.ReadFile(interp)
	if err != nil {
		return nil, err
	}
	files := []initramfs.File{{Path: interp, Mode: 0o755, Data: data}}
	seen := map[string]bool{filepath.Base(interp): true}
	for len(needed) > 0 {
		name := needed[0]
		needed = needed[1:]
		if seen[name] {
			continue
		}
		seen[name] = true
		path, data, err := findLibrary(name)
		if err != nil {
			return nil, err
		}
		_, more, err := dynamic(data)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		files = append(files, initramfs.File{Path: path, Mode: 0o755, Data: data})
		needed = append(needed, more...)
	}
	return files, nil
}

// dynamic gives an executable's dynamic linker, empty where it needs none, and the libraries it names.
func dynamic(exe []byte) (interp string, needed []string, err error) {
	f, err := elf.NewFile(bytes.NewReader(exe))
	if err != nil {
		return "", nil, err
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP && p.Filesz < 4096 {
			name := make([]byte, p.Filesz)
			if _, err := p.ReadAt(name, 0); err != nil {
				return "", nil, err
			}
			interp = string(bytes.TrimRight(name, "\x00"))
		}
	}
	needed, err = f.ImportedLibraries()
	return interp, needed, err
}

func findLibrary(name string) (string, []byte, error) {
	for _, dir := range libraryDirs {
		path := filepath.Join(dir, name)
		if data, err := os.ReadFile(path); err == nil {
			return path, data, nil
		}
	}
	return "", nil, fmt.Errorf("library %s: %w: build with CGO_ENABLED=0", name, fs.ErrNotExist)
}
