package host

import (
	"os"
	"path/filepath"
)

// Directory is the directory of a guest, by its path.
type Directory string

// WriteState implements [Files].
func (d Directory) WriteState(text []byte) error {
	path := filepath.Join(string(d), stateFile)
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// RemoveSocket implements [Files].
func (d Directory) RemoveSocket() error { return os.Remove(filepath.Join(string(d), socketFile)) }

// Remove implements [Files].
func (d Directory) Remove() error {
	for _, f := range []string{socketFile, ConsoleLog, OutputLog, stateFile, stateFile + ".new", lockFile} {
		os.Remove(filepath.Join(string(d), f))
	}
	return os.Remove(string(d))
}
