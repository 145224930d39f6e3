package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"

	"vitrine.dev/vitrine"
)

// detachedVar tells a process that it is to leave its caller once the guest is up, whose name it then writes to upFD.
const (
	detachedVar = "VITRINE_DETACHED"
	upFD        = 3
)

func isDetached() bool { return os.Getenv(detachedVar) != "" }

// detach runs this command line again in a session of its own, and returns when the guest is up or was not to be.
func detach() error {
	up, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer up.Close()
	words, theirWords, err := os.Pipe()
	if err != nil {
		return err
	}
	defer words.Close()
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Args[0] = os.Args[0]
	c.Env = append(os.Environ(), detachedVar+"=1")
	c.Stderr, c.ExtraFiles = theirWords, []*os.File{theirs}
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = c.Start()
	theirs.Close()
	theirWords.Close()
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	go func() {
		for range signals {
			c.Process.Signal(unix.SIGTERM)
		}
	}()
	io.Copy(os.Stderr, words) // to its end: the guest is up, or the process has gone
	name, err := io.ReadAll(io.LimitReader(up, 4096))
	if err == nil && len(name) > 0 {
		os.Stdout.Write(name)
		return nil
	}
	status := vitrine.StatusFailed
	if c.Wait() != nil && c.ProcessState.ExitCode() > 0 {
		status = c.ProcessState.ExitCode()
	}
	return &exitError{status, nil}
}

// runDetached starts the guest, tells who waits for it, and sees it through.
func runDetached(c *vitrine.Config, quiet bool) error {
	os.Unsetenv(detachedVar)
	unix.CloseOnExec(upFD)
	up := os.NewFile(upFD, "up")
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0) // the guest's process can open nothing later
	if err != nil {
		return err
	}
	log := &progress{quiet: quiet}
	c.Log = log.line
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s := watchSignals(cancel)
	defer s.stop()
	m, err := vitrine.Start(ctx, *c)
	if err != nil {
		if status, ok := s.caught(); ok {
			return &exitError{status, nil}
		}
		return err
	}
	s.attach(m, false)
	select {
	case <-m.Up():
	case <-m.Done():
		status, err := m.Wait()
		if err != nil || status != 0 {
			return &exitError{status, err}
		}
	}
	fmt.Fprintln(up, m.Name())
	up.Close()
	unix.Dup3(int(null.Fd()), 2, 0)
	null.Close()
	status, _ := m.Wait()
	return &exitError{status, nil}
}
