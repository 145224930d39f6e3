package confine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The environment of a test's child: which kind of confined process it is, and a directory to try things on.
const (
	kindVar = "CONFINED"
	dirVar  = "CONFINED_DIR"
)

// TestMain is also the process that is confined: what it can do and should not, or the other way round, is what it prints.
func TestMain(m *testing.M) {
	child, ok := children[os.Getenv(kindVar)]
	if !ok {
		os.Exit(m.Run())
	}
	child(os.Getenv(dirVar))
	fmt.Println("done")
	os.Exit(0)
}

// skipMark begins what a child prints that cannot try what it is for.
const skipMark = "skip: "

var children = map[string]func(dir string){"landlock": keepDirectory, "seccomp": keepCalls}

// run runs a child, as user uid where that is not 0, and fails for each line that it prints.
func run(t *testing.T, kind string, uid uint32) {
	t.Helper()
	dir, err := os.MkdirTemp("", "confine-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, sub := range []string{"in", "out"} {
		os.Mkdir(filepath.Join(dir, sub), 0o777)
		os.Chmod(filepath.Join(dir, sub), 0o777)
		os.WriteFile(filepath.Join(dir, sub, "file"), []byte(sub), 0o666)
	}
	self := filepath.Join(dir, "self") // go test's own directory is closed to others
	if out, err := exec.Command("cp", os.Args[0], self).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	os.Chmod(dir, 0o755)
	cmd := exec.Command(self)
	cmd.Env = []string{kindVar + "=" + kind, dirVar + "=" + dir}
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	out, err := cmd.CombinedOutput()
	if why, skip := strings.CutPrefix(string(out), skipMark); skip && err == nil {
		t.Skipf("%s(landlock(7); a test built with cgo has none: CGO_ENABLED=0)", why)
	}
	if err != nil || strings.TrimSpace(string(out)) != "done" {
		t.Errorf("%v: %s", err, out)
	}
}

// eachUser runs a child as who runs the tests, and where that is root as an ordinary user too.
func eachUser(t *testing.T, kind string) {
	t.Run("caller", func(t *testing.T) { run(t, kind, 0) })
	if os.Getuid() == 0 {
		t.Run("ordinary", func(t *testing.T) { run(t, kind, Nobody) })
	}
}

func TestLandlockAloneLeavesOnlyWhatIsNamed(t *testing.T)         { eachUser(t, "landlock") }
func TestSeccompAloneComparesArgumentsAsTheyAreSaid(t *testing.T) { eachUser(t, "seccomp") }

func say(format string, args ...any) { fmt.Printf(format+"\n", args...) }

func raw(number uintptr, args ...uintptr) func() error {
	var a [6]uintptr
	copy(a[:], args)
	return func() error {
		if _, _, e := unix.RawSyscall6(number, a[0], a[1], a[2], a[3], a[4], a[5]); e != 0 {
			return e
		}
		return nil
	}
}

func socket(domain, kind, proto int) func() error {
	return func() error { _, err := unix.Socket(domain, kind, proto); return err }
}

// onThread gives a way to run functions on a thread of their own.
func onThread() func(func() error) error {
	work, result := make(chan func() error), make(chan error)
	go func() {
		runtime.LockOSThread()
		for f := range work {
			result <- f()
		}
	}()
	return func(f func() error) error { work <- f; return <-result }
}

// expect says where err is not what is wanted.
func expect(what string, err, want error) {
	if !errors.Is(err, want) || want == nil && err != nil {
		say("%s: %v, want %v", what, err, want)
	}
}

// keepDirectory is a process that Landlock alone confines.
func keepDirectory(dir string) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		say("%v", err)
	}
	earlier := onThread()
	noNewPrivileges()
	err = landlock([]Below{{Path: dir + "/in", Access: Read | List | Change}, {Path: dir + "/out", Access: List}, {Path: dir + "/absent", Access: Read}}, false)
	if errors.Is(err, ErrNoLandlock) {
		say("%s%v", skipMark, err)
		os.Exit(0)
	}
	expect("landlock", err, nil)
	read := func(name string) func() error { return func() error { _, err := os.ReadFile(dir + name); return err } }
	list := func(name string) func() error { return func() error { _, err := os.ReadDir(dir + name); return err } }
	for what, c := range map[string]struct {
		f    func() error
		want error
	}{
		"read inside":      {read("/in/file"), nil},
		"read outside":     {read("/out/file"), unix.EACCES},
		"list inside":      {list("/in"), nil},
		"list what may be": {list("/out"), nil},
		"list outside":     {list(""), unix.EACCES},
		"write outside":    {func() error { return os.WriteFile(dir+"/out/file", nil, 0o600) }, unix.EACCES},
		"execute":          {func() error { return unix.Exec(dir+"/self", []string{"self"}, nil) }, unix.EACCES},
		"a device":         {func() error { return unix.Mkfifo(dir+"/in/fifo", 0o600) }, unix.EACCES},
	} {
		expect(what, earlier(c.f), c.want)
	}
	expect("make, rename, remove", errors.Join(os.WriteFile(dir+"/in/a", []byte("x"), 0o600), os.Rename(dir+"/in/a", dir+"/in/b"), os.Remove(dir+"/in/b")), nil)
	if abi := landlockABI(); abi >= 4 {
		_, err := net.Dial("tcp4", l.Addr().String())
		expect("connect", err, unix.EACCES)
		var plain net.ListenConfig
		plain.SetMultipathTCP(false) // which Landlock lets through: it is for seccomp to keep MPTCP from who may make sockets
		_, err = plain.Listen(context.Background(), "tcp4", "127.0.0.1:0")
		expect("listen", err, unix.EACCES)
		if abi >= 6 {
			expect("signal", unix.Kill(os.Getppid(), 0), unix.EPERM)
		}
	}
}

// keepCalls is a process that seccomp alone confines, by arguments.
func keepCalls(string) {
	noNewPrivileges()
	err := seccomp(slices.Concat(goCalls, plainMemory, With(unix.SYS_SOCKET, 0, unix.AF_INET, unix.AF_INET6), []Call{
		{unix.SYS_IOCTL, []Arg{{Index: 1, Mask: 0xFF00, Value: 0xAE00}}},
		{unix.SYS_KILL, []Arg{{Index: 0, Value: uint32(os.Getpid())}, {Index: 1, Value: 0}}},
	}))
	expect("seccomp", err, nil)
	for what, c := range map[string]struct {
		f    func() error
		want error
	}{
		"the first way":            {socket(unix.AF_INET, unix.SOCK_DGRAM, 0), nil},
		"the second way":           {socket(unix.AF_INET6, unix.SOCK_DGRAM, 0), nil},
		"no way":                   {socket(unix.AF_UNIX, unix.SOCK_STREAM, 0), unix.EPERM},
		"a masked value":           {raw(unix.SYS_IOCTL, ^uintptr(0), 0x1234AE77), unix.EBADF},
		"another masked value":     {raw(unix.SYS_IOCTL, ^uintptr(0), 0xAF00), unix.EPERM},
		"both arguments":           {raw(unix.SYS_KILL, uintptr(os.Getpid()), 0), nil},
		"one argument":             {raw(unix.SYS_KILL, uintptr(os.Getpid()), uintptr(unix.SIGKILL)), unix.EPERM},
		"the other argument":       {raw(unix.SYS_KILL, 1, 0), unix.EPERM},
		"asking for a limit":       {raw(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_CORE, 0, 0), nil},
		"a pointer's upper half":   {raw(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_CORE, 1<<32, 0), unix.EPERM},
		"a call of the x32 ABI":    {raw(unix.SYS_GETPID | x32), unix.ENOSYS},
		"clone3":                   {raw(unix.SYS_CLONE3), unix.ENOSYS},
		"a call that is not there": {raw(100_000), unix.EPERM},
	} {
		if err := c.f(); c.want == nil && err != nil || c.want != nil && !errors.Is(err, c.want) {
			say("%s: %v, want %v", what, err, c.want)
		}
	}
}

func TestEveryFilterFitsTheKernel(t *testing.T) {
	var many []Call
	for n := range uint32(3000) {
		many = append(many, Call{Number: n})
	}
	if _, err := program(many); err == nil {
		t.Error("a filter of more than BPF_MAXINSNS statements is made")
	}
	var ways []Call
	for v := range uint32(200) {
		ways = append(ways, Call{1, []Arg{{Index: 1, Value: v}}})
	}
	if _, err := program(ways); err == nil {
		t.Error("a jump of more than 255 statements is made")
	}
}

func TestThirtyTwoBitCodeEndsTheProcess(t *testing.T) {
	p, err := program(nil)
	if err != nil {
		t.Fatal(err)
	}
	if p[0] != load(offArch) || p[1].K != unix.AUDIT_ARCH_X86_64 || p[1].Jt != 1 || p[2] != result(unix.SECCOMP_RET_KILL_PROCESS) {
		t.Errorf("the filter begins with %v", p[:3])
	}
}
