// The guest of `./dev bench cpu`: rows of work, each timed by many short samples. As process 1 it runs all of them and powers off.
//
// A line a row: "row CLASS NAME best-ns median-ns samples check", or "row CLASS NAME absent" where the processor lacks what it needs.
#include "rows.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

const char *scratch = "/tmp", *tools = "/bench";

enum { most = 64 };
static const long budget = 120 * 1000 * 1000; // ns a row, but at least three samples

static long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

void fail(const char *what)
{
	printf("fail %s: %s\n", what, strerror(errno));
	fflush(stdout);
	if (getpid() == 1)
		reboot(RB_POWER_OFF);
	exit(1);
}

// has tells whether the processor and its kernel offer what a row needs. __builtin_cpu_supports takes literals only.
static int has(const char *f)
{
#define is(name) if (!strcmp(f, name)) return __builtin_cpu_supports(name) != 0
	__builtin_cpu_init();
	is("avx2"); is("fma"); is("aes"); is("pclmul"); is("sse4.2"); is("bmi2"); is("avx"); is("f16c"); is("popcnt");
#undef is
	if (!strcmp(f, "sha")) {
		unsigned a = 7, b, c = 0, d;
		__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
		return b >> 29 & 1;
	}
	return 0;
}

static int by_value(const void *a, const void *b)
{
	long x = *(const long *)a, y = *(const long *)b;
	return x < y ? -1 : x > y;
}

static void measure(const struct row *r)
{
	if (r->needs && !has(r->needs)) {
		printf("row %s %s absent\n", r->class, r->name);
		return;
	}
	uint64_t check = r->run(); // warms code and data
	long samples[most], spent = 0;
	int n = 0;
	while (n < most && (n < 3 || spent < budget)) {
		long start = now();
		uint64_t again = r->run();
		samples[n] = now() - start;
		spent += samples[n++];
		if (again != check) {
			printf("fail %s %s: %016lx, then %016lx\n", r->class, r->name, check, again);
			return;
		}
	}
	qsort(samples, n, sizeof *samples, by_value);
	printf("row %s %s %ld %ld %d %016lx\n", r->class, r->name, samples[0], samples[n / 2], n, check);
}

static const struct row *const classes[] = { integer_rows, fp_rows, simd_rows, memory_rows, kernel_rows, code_rows, program_rows };

static void boot(void)
{
	mkdir("/proc", 0755), mkdir("/dev", 0755), mkdir("/tmp", 01777), mkdir("/sys", 0755);
	mount("proc", "/proc", "proc", 0, "");
	mount("dev", "/dev", "devtmpfs", 0, "");
	mount("tmp", "/tmp", "tmpfs", 0, "");
	int fd = open("/dev/ttyS0", O_RDWR);
	if (fd >= 0)
		dup2(fd, 0), dup2(fd, 1), dup2(fd, 2);
	setenv("PATH", "/usr/bin:/bin", 1);
	printf("\n"); // the kernel may have left a line unfinished
}

// usage: cpuguest [-C SCRATCH] [-T TOOLS] [-l] [PATTERN…]: rows whose "class name" contains one of the patterns, or all. As process 1 patterns come by the
// kernel's command line, as rows=a,b.
int main(int argc, char **argv)
{
	int list = 0;
	char *from_kernel[32];
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (getpid() == 1) {
		boot();
		char *rows = getenv("rows");
		argc = 1;
		argv = from_kernel;
		for (char *p = rows ? strtok(rows, ",") : NULL; p && argc < 31; p = strtok(NULL, ","))
			argv[argc++] = p;
	}
	if (argc == 2 && !strcmp(argv[1], "-x")) // what the row of fork and exec runs
		return 0;
	int first = 1;
	for (; first < argc && argv[first][0] == '-'; first++) {
		if (!strcmp(argv[first], "-l"))
			list = 1;
		else if (!strcmp(argv[first], "-C") && first + 1 < argc)
			scratch = argv[++first];
		else if (!strcmp(argv[first], "-T") && first + 1 < argc)
			tools = argv[++first];
	}
	for (size_t c = 0; c < sizeof classes / sizeof *classes; c++) {
		for (const struct row *r = classes[c]; r->name; r++) {
			char whole[128];
			int wanted = first == argc;
			snprintf(whole, sizeof whole, "%s %s", r->class, r->name);
			for (int i = first; i < argc && !wanted; i++)
				wanted = strstr(whole, argv[i]) != NULL;
			if (wanted && list)
				printf("%s\n", whole);
			else if (wanted)
				measure(r);
		}
	}
	printf("end\n");
	fflush(stdout);
	if (getpid() == 1) {
		sync();
		reboot(RB_POWER_OFF);
	}
	return 0;
}
