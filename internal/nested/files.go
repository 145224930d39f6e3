package nested

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"

	"vitrine.dev/vitrine/internal/initramfs"
)

// Tree gives the host's file or directory from as to in the outer guest's root. What is no file, directory or symbolic link is left out.
func Tree(from, to string) ([]initramfs.File, error) {
	var files []initramfs.File
	err := filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		f := initramfs.File{Path: path.Join(to, filepath.ToSlash(rel))}
		info, err := d.Info()
		if err != nil {
			return err
		}
		f.Mode = info.Mode().Type() | info.Mode().Perm()
		switch {
		case d.Type() == fs.ModeSymlink && name != from:
			target, err := os.Readlink(name)
			if err != nil {
				return err
			}
			f.Data = []byte(target)
		case d.IsDir():
		default:
			if info, err = os.Stat(name); err != nil || !info.Mode().IsRegular() {
				return err
			}
			f.Mode = info.Mode().Perm()
			if f.Data, err = os.ReadFile(name); err != nil {
				return err
			}
		}
		files = append(files, f)
		return nil
	})
	return files, err
}

// Build makes a static executable of one of the project's commands, or, with "-c" or others of go test's flags before it, a test binary.
func Build(ctx context.Context, what ...string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "nested")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	verb := "build"
	if what[0] == "-c" {
		verb = "test"
	}
	out := filepath.Join(dir, "out")
	args := append([]string{verb, "-trimpath", "-ldflags=-s -w", "-o", out}, what...)
	build := exec.CommandContext(ctx, "go", args...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if said, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("go %v: %w\n%s", args, err, said)
	}
	return os.ReadFile(out)
}

// BuildInit makes the outer guest's first process.
func BuildInit(ctx context.Context) ([]byte, error) {
	return Build(ctx, "vitrine.dev/vitrine/internal/nested/init")
}
