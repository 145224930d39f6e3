package confine

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// A Call is a system call that stays allowed where all of its Args are as said. Several Calls of one number are alternatives.
type Call struct {
	Number uint32
	Args   []Arg
}

// An Arg is what a system call's argument must be: its low 32 bits, masked, are Value. That is all of an int; where a kernel takes more than an
// int, a second Arg with High speaks of the upper half.
type Arg struct {
	Index int // 0 to 5
	High  bool
	Mask  uint32 // 0: all bits
	Value uint32
}

// Calls makes Calls that are allowed with any arguments.
func Calls(numbers ...uint32) []Call {
	all := make([]Call, len(numbers))
	for i, n := range numbers {
		all[i].Number = n
	}
	return all
}

// With makes one Call for each value that argument index may have.
func With(number uint32, index int, values ...uint32) []Call {
	all := make([]Call, len(values))
	for i, v := range values {
		all[i] = Call{number, []Arg{{Index: index, Value: v}}}
	}
	return all
}

// goCalls are what Go's run time and its poller use, on what is open already. Threads may be made, processes may not.
var goCalls = slices.Concat(Calls(
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_PREADV, unix.SYS_PWRITEV,
	unix.SYS_CLOSE, unix.SYS_FSTAT, unix.SYS_LSEEK, unix.SYS_DUP, unix.SYS_DUP3, unix.SYS_PIPE2,
	unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_MINCORE, unix.SYS_BRK, unix.SYS_MREMAP,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_RESTART_SYSCALL,
	unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_FUTEX, unix.SYS_MEMBARRIER,
	unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_GETRES, unix.SYS_GETTIMEOFDAY, unix.SYS_TIME, unix.SYS_GETCPU,
	unix.SYS_GETPID, unix.SYS_GETPPID, unix.SYS_GETTID, unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID,
	unix.SYS_UNAME, unix.SYS_GETRANDOM, unix.SYS_GETRLIMIT, unix.SYS_GETRUSAGE,
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_WAIT, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2, unix.SYS_POLL, unix.SYS_PPOLL,
	unix.SYS_SETITIMER, unix.SYS_TIMER_CREATE, unix.SYS_TIMER_SETTIME, unix.SYS_TIMER_DELETE, // a profile of ourselves
	unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_ARCH_PRCTL, unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ,
),
	// Not the commands that have the kernel send signals.
	With(unix.SYS_FCNTL, 1, unix.F_DUPFD, unix.F_DUPFD_CLOEXEC, unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL, unix.F_GET_SEALS),
	With(unix.SYS_PRCTL, 0, unix.PR_SET_VMA), // a name for a mapping
	[]Call{
		{unix.SYS_CLONE, []Arg{{Index: 0, Mask: unix.CLONE_THREAD, Value: unix.CLONE_THREAD}}},
		{unix.SYS_PRLIMIT64, []Arg{{Index: 2}, {Index: 2, High: true}}}, // asking, not setting
	},
)

// plainMemory are mappings without code; anyMemory are all, for who makes code at run time.
var (
	plainMemory = []Call{
		{unix.SYS_MMAP, []Arg{{Index: 2, Mask: unix.PROT_EXEC}}}, {unix.SYS_MPROTECT, []Arg{{Index: 2, Mask: unix.PROT_EXEC}}},
	}
	anyMemory = Calls(unix.SYS_MMAP, unix.SYS_MPROTECT)
)

// Offsets in struct seccomp_data (linux/seccomp.h). Arguments are 64 bits, the low half first.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// x32 marks the numbers of another ABI of the same architecture.
const x32 = 0x40000000

// seccomp gives all threads a filter that allows what is in calls. All else fails with EPERM: a Go run time that is newer than the list must not cost a
// guest its life, and what is refused is refused. What is known to have an older way fails with ENOSYS.
func seccomp(calls []Call) error {
	p, err := program(calls)
	if err != nil {
		return err
	}
	return install(p)
}

func statement(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }

func load(off uint32) unix.SockFilter {
	return statement(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, off)
}

func result(k uint32) unix.SockFilter { return statement(unix.BPF_RET|unix.BPF_K, k) }

func refuse(errno unix.Errno) unix.SockFilter {
	return result(unix.SECCOMP_RET_ERRNO | uint32(errno))
}

// unlessEqual skips n statements where the accumulator is not k.
func unlessEqual(k uint32, n uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jf: n}
}

// maxFilter is the kernel's BPF_MAXINSNS.
const maxFilter = 4096

// program is the filter, in classic BPF.
func program(calls []Call) ([]unix.SockFilter, error) {
	p := []unix.SockFilter{
		load(offArch),
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.AUDIT_ARCH_X86_64, Jt: 1},
		result(unix.SECCOMP_RET_KILL_PROCESS), // 32-bit code: its numbers are others
		load(offNumber),
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: x32, Jf: 1},
		refuse(unix.ENOSYS),
		// A thread is made by clone; clone3, whose flags a filter cannot see, is as if the kernel were older.
		unlessEqual(unix.SYS_CLONE3, 1),
		refuse(unix.ENOSYS),
	}
	var order []uint32
	ways := map[uint32][][]Arg{}
	for _, c := range calls {
		if ways[c.Number] == nil {
			order = append(order, c.Number)
		}
		ways[c.Number] = append(ways[c.Number], c.Args)
	}
	for _, n := range order {
		b := block(ways[n])
		if len(b) > 255 {
			return nil, fmt.Errorf("too many ways to call %d", n)
		}
		p = append(append(p, unlessEqual(n, uint8(len(b)))), b...)
	}
	if p = append(p, refuse(unix.EPERM)); len(p) > maxFilter {
		return nil, fmt.Errorf("a filter of %d statements", len(p))
	}
	return p, nil
}

// block decides on one system call.
func block(ways [][]Arg) (b []unix.SockFilter) {
	for _, args := range ways {
		if len(args) == 0 {
			return []unix.SockFilter{result(unix.SECCOMP_RET_ALLOW)}
		}
		var one []unix.SockFilter
		for i := len(args) - 1; i >= 0; i-- { // from the end, for the jumps' lengths
			a := args[i]
			off := uint32(offArgs + 8*a.Index)
			if a.High {
				off += 4
			}
			check := []unix.SockFilter{load(off)}
			if a.Mask != 0 {
				check = append(check, statement(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, a.Mask))
			}
			if i == len(args)-1 {
				one = []unix.SockFilter{result(unix.SECCOMP_RET_ALLOW)}
			}
			one = append(append(check, unlessEqual(a.Value, uint8(len(one)))), one...)
		}
		b = append(b, one...)
	}
	return append(b, refuse(unix.EPERM))
}
