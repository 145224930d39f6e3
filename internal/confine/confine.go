// Package confine takes rights from a process that runs a guest, for good.
//
// It is one layer of several, and the one that holds for all threads: whoever takes the process over through a device cannot start a program,
// look into other processes, change what is mounted, or come to more rights. What is not taken here, the opening of files
// and connecting, the server of the host's tree and the network need; see hostfs for what their threads may do.
package confine

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// denied are the system calls that a running guest has no use for. They fail with EPERM.
var denied = []uint32{
	unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_FORK, unix.SYS_VFORK,
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_KCMP, unix.SYS_PIDFD_GETFD, unix.SYS_PROCESS_MADVISE,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_FSOPEN,
	unix.SYS_FSMOUNT, unix.SYS_MOUNT_SETATTR, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_QUOTACTL,
	unix.SYS_UNSHARE, unix.SYS_SETNS, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME,
	unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_REBOOT,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP,
	unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL, unix.SYS_PERSONALITY, unix.SYS_ACCT, unix.SYS_SYSLOG,
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_ADJTIMEX, unix.SYS_CLOCK_ADJTIME,
	unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_MODIFY_LDT, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_NAME_TO_HANDLE_AT,
	unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID, unix.SYS_SETREUID, unix.SYS_SETREGID,
}

// Offsets in struct seccomp_data (linux/seccomp.h).
const (
	offNumber = 0
	offArch   = 4
	offArg0   = 16
)

// x32 marks the numbers of another ABI of the same architecture.
const x32 = 0x40000000

// Process takes rights from all threads of the calling process, present and to come. What it did before cannot be had again.
func Process() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("confine: no_new_privs: %w", err)
	}
	if err := install(program()); err != nil {
		return fmt.Errorf("confine: seccomp: %w", err)
	}
	return nil
}

// program is the filter, in classic BPF.
func program() []unix.SockFilter {
	load := func(off uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
	}
	result := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	equal := func(k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: yes, Jf: no}
	}
	refuse := func(errno unix.Errno) unix.SockFilter { return result(unix.SECCOMP_RET_ERRNO | uint32(errno)) }
	p := []unix.SockFilter{
		load(offArch),
		equal(unix.AUDIT_ARCH_X86_64, 1, 0),
		result(unix.SECCOMP_RET_KILL_PROCESS), // 32-bit code: its numbers are others
		load(offNumber),
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: x32, Jt: 0, Jf: 1},
		refuse(unix.ENOSYS),
		// A thread is made by clone; clone3, whose flags a filter cannot see, is as if the kernel were older.
		equal(unix.SYS_CLONE3, 0, 1),
		refuse(unix.ENOSYS),
		equal(unix.SYS_CLONE, 0, 4),
		load(offArg0),
		{Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: unix.CLONE_THREAD, Jt: 1, Jf: 0},
		refuse(unix.EPERM),
		result(unix.SECCOMP_RET_ALLOW),
	}
	for _, nr := range denied {
		p = append(p, equal(nr, 0, 1), refuse(unix.EPERM))
	}
	return append(p, result(unix.SECCOMP_RET_ALLOW))
}
