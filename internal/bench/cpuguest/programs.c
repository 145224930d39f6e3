// Real programs: busybox, cc1 and our Go program in the directory of tools, perl and the libraries where the host has them.
#define _GNU_SOURCE
#include "rows.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

// run executes a shell's command line in scratch and folds its output and status.
static uint64_t run(const char *command)
{
	int out[2], status;
	char buf[4096], shell[256];
	uint64_t h = 0;
	snprintf(shell, sizeof shell, "%s/busybox", tools);
	setenv("T", tools, 1);
	if (pipe2(out, O_CLOEXEC))
		fail("pipe");
	pid_t child = vfork();
	if (child == 0) {
		dup2(out[1], 1);
		if (chdir(scratch))
			_exit(126);
		execl(shell, "sh", "-c", command, (char *)NULL);
		_exit(127);
	}
	close(out[1]);
	ssize_t n;
	while ((n = read(out[0], buf, sizeof buf)) > 0)
		for (ssize_t i = 0; i < n; i++)
			h = mix(h, (uint8_t)buf[i]);
	close(out[0]);
	waitpid(child, &status, 0);
	if (status) {
		fprintf(stderr, "status %d: %s\n", status, command);
		return 0;
	}
	return h;
}

// text makes the input of the text tools, once: 200 KB of words.
static void text(void)
{
	static int made;
	char path[256];
	if (made++)
		return;
	snprintf(path, sizeof path, "%s/words", scratch);
	FILE *f = fopen(path, "w");
	if (!f)
		fail(path);
	uint64_t s = 1234567;
	for (int i = 0; i < 30000; i++)
		fprintf(f, "%s%lu%c", &"the quick brown fox jumps over a lazy dog"[next(&s) % 30], next(&s) % 977, i % 9 ? ' ' : '\n');
	fclose(f);
}

#define tool(name, command) static uint64_t name(void) { text(); return run(command); }

tool(gzip, "$T/busybox gzip -c words | $T/busybox md5sum")
tool(gunzip, "test -f z.gz || $T/busybox gzip -c words > z.gz; $T/busybox gunzip -c z.gz | $T/busybox md5sum")
tool(sha, "$T/busybox sha256sum words")
tool(sort, "$T/busybox sort words | $T/busybox uniq -c | $T/busybox md5sum")
tool(grep, "$T/busybox grep -c 'fo.*[0-9]7' words")
tool(sed, "$T/busybox sed 's/qu[a-z]*/<&>/g; s/[0-9][0-9]*/#/g' words | $T/busybox md5sum")
tool(awk, "$T/busybox awk '{ for (i = 1; i <= NF; i++) n[$i]++ } END { for (w in n) s += n[w] * length(w); print s }' words")
tool(shell, "i=0; s=0; while [ $i -lt 4000 ]; do i=$((i+1)); s=$((s+i%7)); done; echo $s")
tool(shell_processes, "i=0; while [ $i -lt 15 ]; do i=$((i+1)); $T/busybox true | $T/busybox cat; done; echo done")
tool(perl, "perl -e 'my %h; open F, \"words\"; while (<F>) { $h{$_}++ for split } my $s = 0; $s += $h{$_} * length $_ for sort keys %h; print $s, \"\\n\"'")
tool(cc1, "cd $T && ./cc1 -quiet -fpreprocessed -fno-diagnostics-color -O1 rows.i -o - | $T/busybox md5sum")
tool(go_json, "$T/gorows json")
tool(go_regexp, "$T/gorows regexp")
tool(go_maps, "$T/gorows maps")
tool(go_gc, "$T/gorows gc")
tool(go_channels, "$T/gorows channels")
tool(go_gzip, "$T/gorows gzip")
tool(go_http, "$T/gorows http")

const struct row program_rows[] = {
	{ "program", "gzip", gzip },
	{ "program", "gunzip", gunzip },
	{ "program", "sha256sum", sha },
	{ "program", "sort", sort },
	{ "program", "grep", grep },
	{ "program", "sed", sed },
	{ "program", "awk", awk },
	{ "program", "shell-loop", shell },
	{ "program", "shell-processes", shell_processes },
	{ "program", "perl", perl },
	{ "program", "cc1", cc1 },
	{ "program", "go-json", go_json },
	{ "program", "go-regexp", go_regexp },
	{ "program", "go-maps", go_maps },
	{ "program", "go-gc", go_gc },
	{ "program", "go-channels", go_channels },
	{ "program", "go-gzip", go_gzip },
	{ "program", "go-http", go_http },
	{ 0 },
};
