package vitrine

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine/internal/confine"
	"vitrine.dev/vitrine/internal/helper"
	"vitrine.dev/vitrine/internal/helper/files"
	"vitrine.dev/vitrine/internal/helper/network"
	"vitrine.dev/vitrine/internal/helper/registry"
	"vitrine.dev/vitrine/internal/printable"
)

// helpers are the kinds of processes that a guest's process starts beside itself.
var helpers = map[string]helper.Main{files.Kind: files.Main, network.Kind: network.Main, registry.Kind: registry.Main}

// helperOptions are those of the guest's helpers.
func (m *Machine) helperOptions() helper.Options {
	name := m.cfg.Name // until it has one
	if m.entry != nil {
		name = m.entry.Name()
	}
	return helper.Options{Program: m.cfg.Init, Guest: name, Log: func(line string) { m.cfg.Log(printable.Text(line)) }}
}

// helperUser is who a helper becomes that is root and needs not be: a user whom nobody else on the host is.
func helperUser() int { return confine.UserOf(os.Getpid()) }

// keep has another process change the guest's directory from now on.
func (m *Machine) keep() error {
	keeper, err := registry.Start(m.helperOptions(), m.entry.Dir())
	if err != nil {
		return err
	}
	m.keeper = keeper
	m.helpers = append(m.helpers, keeper.Process)
	return nil
}

// helpersReady waits until all helpers have given up their rights.
func (m *Machine) helpersReady() error {
	for _, h := range m.helpers {
		lacks, err := h.Ready()
		if err != nil {
			return err
		}
		m.lacks = max(m.lacks, lacks)
		go m.mourn(h)
	}
	m.entry.Delegate(m.keeper)
	return nil
}

// confine gives up this process's rights, where that is asked for. Nothing of the guest has run yet.
func (m *Machine) confine() error {
	if m.cfg.Confine {
		if err := os.Chdir("/"); err != nil { // to hold no directory
			return err
		}
		err := confine.Apply(m.rights())
		if errors.Is(err, confine.ErrPart) {
			m.lacks, err = err.Error(), nil
		}
		if err != nil {
			return err
		}
	}
	if m.lacks != "" {
		m.cfg.Log(strings.ReplaceAll(m.lacks, "\n", "; "))
	}
	return nil
}

// mourn says that a helper has ended before its guest.
func (m *Machine) mourn(h *helper.Process) {
	<-h.Done()
	select {
	case <-m.ended:
	default:
		m.cfg.Log(fmt.Sprintf("the guest goes on without its helper for %s, which has ended", h.Kind()))
	}
}

// vmCalls are what a machine's process uses while its guest runs, beside what Go's run time does: its socket's clients, disks and logs that
// are open, helpers that end.
var vmCalls = confine.Calls(
	unix.SYS_ACCEPT4, unix.SYS_RECVMSG, unix.SYS_SENDMSG, unix.SYS_RECVFROM, unix.SYS_SENDTO, unix.SYS_SHUTDOWN,
	unix.SYS_GETSOCKOPT, unix.SYS_SETSOCKOPT, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_SPLICE,
	unix.SYS_FALLOCATE, unix.SYS_FTRUNCATE, unix.SYS_FSYNC, unix.SYS_FDATASYNC,
	unix.SYS_TIMERFD_SETTIME, // the board's clock
	unix.SYS_WAIT4, unix.SYS_WAITID, unix.SYS_PIDFD_SEND_SIGNAL,
	unix.SYS_MEMFD_CREATE, // memory for code, mapped twice
)

// vmIoctls are the terminal's, save that which types for its user, and KVM's.
var vmIoctls = append(
	confine.With(unix.SYS_IOCTL, 1, unix.TCGETS, unix.TCSETS, unix.TIOCGWINSZ),
	confine.Call{Number: unix.SYS_IOCTL, Args: []confine.Arg{{Index: 1, Mask: 0xFF00, Value: 0xAE00}}}, // KVMIO, linux/kvm.h
)

// rights are what this process keeps. It maps code: the CPU engine translates.
func (m *Machine) rights() confine.Rights {
	return confine.Rights{Calls: slices.Concat(vmCalls, vmIoctls), Code: true, FileSize: -1, User: helperUser()}
}
