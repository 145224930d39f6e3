package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// maxDescriptors bounds those of a guest's processes, each; a file server keeps some of its guest's files open besides.
const (
	maxDescriptors = 64
	maxServed      = 300
)

// confinedCmd claims that a guest's process and its helpers have given up what they do not need, hold nothing open that they should not, and that only the
// first is listed.
func confinedCmd(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: confined guest")
	}
	vm := guestPID(ts, args[0])
	helpers := children(ts, vm)
	var kinds []string
	for kind := range helpers {
		kinds = append(kinds, strings.TrimRight(kind, "0123456789"))
	}
	slices.Sort(kinds)
	if got := strings.Join(kinds, " "); got != "files files network registry" {
		ts.Fatalf("helpers: %s", got)
	}
	var wrong []string
	check := func(who string, pid int, status map[string]string) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		ts.Check(err)
		for key, want := range status {
			if !strings.Contains(string(text), "\n"+key+":\t"+want+"\n") {
				wrong = append(wrong, fmt.Sprintf("%s lacks %s %s in:\n%s", who, key, want, text))
			}
		}
		if dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); dir != "/" {
			wrong = append(wrong, fmt.Sprintf("%s is in %s, %v", who, dir, err))
		}
		if strings.HasPrefix(who, "files") {
			if fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)); len(fds) > maxDescriptors+maxServed {
				wrong = append(wrong, fmt.Sprintf("%s has %d descriptors", who, len(fds)))
			}
			return
		}
		for _, fd := range strangeFiles(ts, pid, filepath.Join(ts.Getenv("XDG_RUNTIME_DIR"), "vitrine", args[0])) {
			wrong = append(wrong, who+" has open: "+fd)
		}
	}
	none := map[string]string{"NoNewPrivs": "1", "Seccomp": "2"}
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
		none[set] = "0000000000000000"
	}
	other := fmt.Sprintf("%[1]d\t%[1]d\t%[1]d\t%[1]d", 0x7E000000+vm)
	stranger := with(none, "Uid", other, "Gid", other, "Groups", " ", "CapBnd", "0000000000000000")
	if os.Geteuid() != 0 {
		stranger = none
	}
	check("the guest's process", vm, stranger)
	for kind, pid := range helpers {
		switch kind {
		case "registry":
			check(kind, pid, none)
		case "files2": // the shares', whose files may be anybody's where root shares them
			check(kind, pid, map[string]string{"NoNewPrivs": "1", "Seccomp": "2", "CapAmb": "0000000000000000"})
		default:
			check(kind, pid, stranger)
		}
	}
	ts.Check(ts.Exec("vitrine", "ls", "--json"))
	listed := ts.ReadFile("stdout")
	for kind, pid := range helpers {
		if strings.Contains(listed, fmt.Sprintf(`"pid": %d,`, pid)) {
			wrong = append(wrong, "ls lists helper "+kind)
		}
	}
	if !strings.Contains(listed, fmt.Sprintf(`"pid": %d,`, vm)) {
		wrong = append(wrong, "ls does not list the guest: "+listed)
	}
	if wrong != nil {
		ts.Fatalf("%s", strings.Join(wrong, "\n"))
	}
}

func with(m map[string]string, more ...string) map[string]string {
	all := map[string]string{}
	for k, v := range m {
		all[k] = v
	}
	for i := 0; i < len(more); i += 2 {
		all[more[i]] = more[i+1]
	}
	return all
}

// guestPID is the process of a guest of the script's.
func guestPID(ts *testscript.TestScript, name string) int {
	text, err := os.ReadFile(filepath.Join(ts.Getenv("XDG_RUNTIME_DIR"), "vitrine", name, "state.json"))
	ts.Check(err)
	var state struct{ PID int }
	ts.Check(json.Unmarshal(text, &state))
	return state.PID
}

// children gives the helpers of a guest's process by kind, and for the second of a kind with a 2 behind.
func children(ts *testscript.TestScript, vm int) map[string]int {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", vm))
	ts.Check(err)
	var pids []int
	for _, path := range tasks {
		text, _ := os.ReadFile(path)
		for _, f := range strings.Fields(string(text)) {
			pid, err := strconv.Atoi(f)
			ts.Check(err)
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	all := map[string]int{}
	for _, pid := range pids {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		ts.Check(err)
		argv := strings.Split(string(line), "\x00")
		if len(argv) < 3 || argv[0] != "vitrine-helper" {
			ts.Fatalf("process %d is %q", pid, argv)
		}
		kind := argv[1]
		if all[kind] != 0 {
			kind += "2"
		}
		all[kind] = pid
	}
	return all
}

// strangeFiles gives what a process has open and needs not.
func strangeFiles(ts *testscript.TestScript, pid int, guestDir string) (strange []string) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	ts.Check(err)
	if len(fds) > maxDescriptors {
		strange = append(strange, fmt.Sprintf("%d descriptors", len(fds)))
	}
	for _, fd := range fds {
		to, err := os.Readlink(filepath.Join(dir, fd.Name()))
		if err != nil {
			continue // closed meanwhile
		}
		known := slices.ContainsFunc([]string{
			"socket:[", "pipe:[", "anon_inode:", "/memfd:vitrine-", "/dev/kvm", "/dev/null", "/sys/fs/cgroup/", guestDir + "/",
		}, func(prefix string) bool { return strings.HasPrefix(to, prefix) })
		if !known {
			strange = append(strange, to)
		}
	}
	return strange
}

// killHelperCmd ends a helper of a guest, at once.
func killHelperCmd(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: kill-helper guest kind")
	}
	pid := children(ts, guestPID(ts, args[0]))[args[1]]
	if pid == 0 {
		ts.Fatalf("%s has no helper %s", args[0], args[1])
	}
	ts.Check(syscall.Kill(pid, syscall.SIGKILL))
}

// killVMCmd ends a guest's process at once, and claims that its helpers end too.
func killVMCmd(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: kill-vm guest")
	}
	vm := guestPID(ts, args[0])
	helpers := children(ts, vm)
	ts.Check(syscall.Kill(vm, syscall.SIGKILL))
	for kind, pid := range helpers {
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if err != nil || len(line) == 0 { // nobody may have waited for it yet
				break
			}
			if time.Now().After(end) {
				ts.Fatalf("helper %s lives on", kind)
			}
		}
	}
}
