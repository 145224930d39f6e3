// What programs ask of their kernel.
#define _GNU_SOURCE
#include "rows.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint64_t null_call(void)
{
	for (int i = 0; i < 4000; i++)
		syscall(SYS_getppid);
	return 4000;
}

static uint64_t clock_row(void)
{
	struct timespec t;
	for (int i = 0; i < 8000; i++)
		clock_gettime(CLOCK_MONOTONIC, &t);
	return 8000;
}

static uint64_t pipe_switch(void)
{
	enum { rounds = 150 };
	int there[2], back[2];
	char c = 7;
	if (pipe(there) || pipe(back))
		fail("pipe");
	pid_t child = fork();
	if (child == 0) {
		for (int i = 0; i < rounds; i++)
			if (read(there[0], &c, 1) != 1 || write(back[1], &c, 1) != 1)
				_exit(1);
		_exit(0);
	}
	for (int i = 0; i < rounds; i++)
		if (write(there[1], &c, 1) != 1 || read(back[0], &c, 1) != 1)
			fail("pipe");
	int status;
	waitpid(child, &status, 0);
	close(there[0]), close(there[1]), close(back[0]), close(back[1]);
	return mix(c, status);
}

static uint64_t fork_wait(void)
{
	uint64_t h = 0;
	for (int i = 0; i < 8; i++) {
		int status;
		pid_t child = fork();
		if (child == 0)
			_exit(i);
		waitpid(child, &status, 0);
		h = mix(h, status);
	}
	return h;
}

static uint64_t fork_exec(void)
{
	uint64_t h = 0;
	for (int i = 0; i < 3; i++) {
		int status;
		pid_t child = vfork();
		if (child == 0) {
			execl("/proc/self/exe", "cpuguest", "-x", (char *)NULL);
			_exit(127);
		}
		waitpid(child, &status, 0);
		h = mix(h, status);
	}
	return h;
}

static uint64_t page_fault(void)
{
	enum { pages = 512 };
	volatile char *p = mmap(NULL, pages << 12, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (p == MAP_FAILED)
		fail("mmap");
	madvise((void *)p, pages << 12, MADV_NOHUGEPAGE);
	uint64_t h = 0;
	for (int i = 0; i < pages; i++)
		p[i << 12] = i, h += p[i << 12];
	munmap((void *)p, pages << 12);
	return h;
}

static uint64_t mmap_row(void)
{
	uint64_t h = 0;
	for (int i = 0; i < 200; i++) {
		char *p = mmap(NULL, 64 << 10, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		*p = i;
		h += *p;
		munmap(p, 64 << 10);
	}
	return h;
}

static uint64_t mprotect_row(void)
{
	char *p = mmap(NULL, 64 << 10, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (int i = 0; i < 300; i++) {
		mprotect(p + 4096, 4096, PROT_READ);
		mprotect(p + 4096, 4096, PROT_READ | PROT_WRITE);
		p[4096] = i;
	}
	uint64_t h = p[4096];
	munmap(p, 64 << 10);
	return h;
}

static volatile sig_atomic_t caught;
static void count(int n) { caught += n; }

static uint64_t signal_row(void)
{
	signal(SIGUSR1, count);
	caught = 0;
	for (int i = 0; i < 500; i++)
		raise(SIGUSR1);
	return caught;
}

static sigjmp_buf out;
static void jump(int n) { caught += n; siglongjmp(out, 1); }

static uint64_t segv(void)
{
	struct sigaction s = { .sa_handler = jump, .sa_flags = SA_NODEFER };
	sigaction(SIGSEGV, &s, NULL);
	caught = 0;
	for (volatile int i = 0; i < 300; i++)
		if (!sigsetjmp(out, 0))
			*(volatile int *)opaque((int *)64) = 1;
	signal(SIGSEGV, SIG_DFL);
	return caught;
}

static uint32_t turn;

static void wait_for(uint32_t mine)
{
	while (__atomic_load_n(&turn, __ATOMIC_SEQ_CST) != mine)
		syscall(SYS_futex, &turn, FUTEX_WAIT_PRIVATE, mine ^ 1, NULL, NULL, 0);
}

static void hand_over(uint32_t to)
{
	__atomic_store_n(&turn, to, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

enum { turns = 200 };

static void *partner(void *unused)
{
	for (int i = 0; i < turns; i++)
		wait_for(1), hand_over(0);
	return unused;
}

static uint64_t futex_switch(void)
{
	pthread_t t;
	turn = 0;
	if (pthread_create(&t, NULL, partner, NULL))
		fail("thread");
	for (int i = 0; i < turns; i++)
		wait_for(0), hand_over(1);
	pthread_join(t, NULL);
	return turn;
}

static void *nothing(void *p) { return p; }

static uint64_t thread_create(void)
{
	uint64_t h = 0;
	for (long i = 0; i < 15; i++) {
		pthread_t t;
		void *v;
		if (pthread_create(&t, NULL, nothing, (void *)i))
			fail("thread");
		pthread_join(t, &v);
		h = mix(h, (long)v);
	}
	return h;
}

static const char *path(const char *name)
{
	static char s[256];
	snprintf(s, sizeof s, "%s/%s", scratch, name);
	return s;
}

static char block[64 << 10];

static uint64_t file_write(void)
{
	int fd = open(path("rows-file"), O_CREAT | O_TRUNC | O_RDWR, 0600);
	if (fd < 0)
		fail(path("rows-file"));
	for (int i = 0; i < 16; i++)
		if (write(fd, block, sizeof block) != sizeof block)
			fail("write");
	uint64_t h = lseek(fd, 0, SEEK_CUR);
	close(fd);
	return h;
}

static uint64_t file_read(void)
{
	uint64_t h = 0;
	int fd = open(path("rows-file"), O_RDONLY);
	if (fd < 0)
		return file_write(), file_read();
	ssize_t n;
	while ((n = read(fd, block, sizeof block)) > 0)
		h += n;
	close(fd);
	return h;
}

static uint64_t open_row(void)
{
	uint64_t h = 0;
	file_write();
	for (int i = 0; i < 500; i++) {
		int fd = open(path("rows-file"), O_RDONLY);
		h += fd >= 0;
		close(fd);
	}
	return h;
}

static uint64_t create(void)
{
	char name[32];
	uint64_t h = 0;
	for (int i = 0; i < 100; i++) {
		snprintf(name, sizeof name, "rows-%d", i);
		int fd = open(path(name), O_CREAT | O_EXCL | O_RDWR, 0600);
		h += fd >= 0;
		close(fd);
	}
	for (int i = 0; i < 100; i++) {
		snprintf(name, sizeof name, "rows-%d", i);
		h += !unlink(path(name));
	}
	return h;
}

static uint64_t stat_row(void)
{
	struct stat s;
	uint64_t h = 0;
	file_write();
	for (int i = 0; i < 1500; i++)
		h += !stat(path("rows-file"), &s) && s.st_size > 0;
	return h;
}

const struct row kernel_rows[] = {
	{ "kernel", "null-call", null_call },
	{ "kernel", "clock-gettime", clock_row },
	{ "kernel", "pipe-switch", pipe_switch },
	{ "kernel", "fork-wait", fork_wait },
	{ "kernel", "fork-exec", fork_exec },
	{ "kernel", "page-fault", page_fault },
	{ "kernel", "mmap", mmap_row },
	{ "kernel", "mprotect", mprotect_row },
	{ "kernel", "signal", signal_row },
	{ "kernel", "segv", segv },
	{ "kernel", "futex-switch", futex_switch },
	{ "kernel", "thread-create", thread_create },
	{ "kernel", "tmpfs-write", file_write },
	{ "kernel", "tmpfs-read", file_read },
	{ "kernel", "open", open_row },
	{ "kernel", "create", create },
	{ "kernel", "stat", stat_row },
	{ 0 },
};
