// Checkinit is the first process of a guest under test: it looks at its world, says on the console what is right and what is not, and
// ends the machine.
//
// Words of the kernel's command line that begin with "check." say what to expect:
// check.cpus=N, check.mib=N (of memory), check.given=WORD (in the file /given), check.end=poweroff|restart|panic|exit|echo;
// check.only=NAME,… leaves the other checks out, check.not=NAME,… those.
// With an argument it is one of the programs that its checks start; "compute" prints what guest and host must agree on.
package main

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Words that the tests look for.
const (
	up     = "check: up"
	passed = "check: all is well"
	failed = "check: something is wrong"
)

func main() {
	if len(os.Args) > 1 && os.Getpid() != 1 {
		child(os.Args[1])
		return
	}
	fmt.Println(up)
	if err := mounts(); err != nil {
		fmt.Println(failed+":", err)
		end("poweroff")
	}
	want := words()
	ok := true
	for _, c := range checks {
		if only, some := want["only"]; some && !slices.Contains(strings.Split(only, ","), c.name) {
			continue
		}
		if slices.Contains(strings.Split(want["not"], ","), c.name) {
			continue
		}
		began := time.Now()
		err := attempt(func() error { return c.do(want) })
		took := time.Since(began).Round(time.Millisecond)
		if err != nil {
			ok = false
			fmt.Printf("check: %s: %v after %v\n", c.name, err, took)
			continue
		}
		fmt.Printf("check: %s is well after %v\n", c.name, took)
	}
	if ok {
		fmt.Println(passed)
	} else {
		fmt.Println(failed)
	}
	end(want["end"])
}

// attempt makes a check's panic its error.
func attempt(do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("it panicked: %v", p)
		}
	}()
	return do()
}

func mounts() error {
	for _, m := range []struct{ fstype, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/tmp"}} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.fstype, m.at, m.fstype, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.fstype, err)
		}
	}
	return nil
}

// words is what the command line has behind "check.".
func words() map[string]string {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		fmt.Println(failed+":", err)
	}
	m := map[string]string{}
	for _, w := range strings.Fields(string(line)) {
		if w, ok := strings.CutPrefix(w, "check."); ok {
			name, value, _ := strings.Cut(w, "=")
			m[name] = value
		}
	}
	return m
}

// number is an expectation that is a number; 0 where there is none.
func number(want map[string]string, name string) int {
	n, _ := strconv.Atoi(want[name])
	return n
}

// end ends the machine.
func end(how string) {
	unix.Sync()
	switch how {
	case "restart":
		unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	case "panic":
		os.Exit(0) // "Attempted to kill init!"
	case "exit":
		debugExit(0x10)
	case "echo":
		fmt.Println("check: say something")
		line, err := bufio.NewReader(os.Stdin).ReadString('\n')
		fmt.Printf("check: heard %q, %v\n", strings.TrimSpace(line), err)
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	time.Sleep(time.Minute)
}
