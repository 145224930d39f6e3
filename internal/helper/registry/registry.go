// Package registry is the helper that changes the files of a guest's directory, once the guest's process may not any more.
package registry

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/confine"
	"vitrine.dev/vitrine/internal/helper"
	"vitrine.dev/vitrine/internal/host"
)

// Kind is the helper's, for [helper.Run].
const Kind = "registry"

// A packet says what is to be done; the first one, where. Its answer has the error.
type packet struct {
	Dir   string `json:"dir,omitempty"`
	Do    string `json:"do,omitempty"`
	State []byte `json:"state,omitempty"`
	Error string `json:"error,omitempty"`
}

// What is to be done.
const (
	writeState   = "write state"
	removeSocket = "remove socket"
	remove       = "remove"
)

// Files are a guest's, changed by a helper. They implement [host.Files].
type Files struct {
	*helper.Process
	mu sync.Mutex // held until a packet's answer
}

var _ host.Files = (*Files)(nil)

// Start starts the helper for the guest whose directory is dir.
func Start(o helper.Options, dir string) (*Files, error) {
	p, err := helper.Start(Kind, o, packet{Dir: dir})
	if err != nil {
		return nil, err
	}
	return &Files{Process: p}, nil
}

func (f *Files) do(p packet) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.Send(p); err != nil {
		return fmt.Errorf("helper registry: %w", err)
	}
	if _, err := f.Recv(&p); err != nil {
		return fmt.Errorf("helper registry: %w", err)
	}
	if p.Error != "" {
		return errors.New(p.Error)
	}
	return nil
}

// WriteState implements [host.Files].
func (f *Files) WriteState(text []byte) error { return f.do(packet{Do: writeState, State: text}) }

// RemoveSocket implements [host.Files].
func (f *Files) RemoveSocket() error { return f.do(packet{Do: removeSocket}) }

// Remove implements [host.Files].
func (f *Files) Remove() error { return f.do(packet{Do: remove}) }

// calls are those of writing, renaming and removing. Landlock says where.
var calls = confine.Calls(
	unix.SYS_OPENAT, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_UNLINKAT, unix.SYS_SENDMSG, unix.SYS_RECVMSG,
)

func rights(dir string) confine.Rights {
	return confine.Rights{
		Calls: calls, OpenFiles: 32, FileSize: helper.MaxPacket,
		Files: []confine.Below{{Path: dir, Access: confine.Change}, {Path: filepath.Dir(dir), Access: confine.Remove}},
	}
}

// Main is the helper. Where it is root it stays that user, whose the directory is, without capabilities.
func Main(c *helper.Conn) error {
	var p packet
	if _, err := c.Recv(&p); err != nil {
		return err
	}
	dir := host.Directory(p.Dir)
	if err := c.Confine(rights(p.Dir)); err != nil {
		return err
	}
	for {
		p = packet{}
		if _, err := c.Recv(&p); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		var err error
		switch p.Do {
		case writeState:
			err = dir.WriteState(p.State)
		case removeSocket:
			err = dir.RemoveSocket()
		case remove:
			err = dir.Remove()
		default:
			err = fmt.Errorf("helper registry: %q is nothing to do", p.Do)
		}
		answer := packet{}
		if err != nil {
			answer.Error = err.Error()
		}
		if err := c.Send(answer); err != nil {
			return err
		}
	}
}
