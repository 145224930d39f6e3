#!/bin/sh
# record.sh PID [WHAT]: writes what vmm reads of a process, as a txtar archive: testdata/*.txtar is made so where its first lines say that it was recorded.
# An argument's NULs are newlines; "-> " stands for a link.
cd "/proc/$1" || exit
echo "Recorded: ${2:-$(tr '\0' ' ' <cmdline)}"
for f in stat status cgroup; do printf -- '-- %s/%s --\n' "$1" $f; cat $f; done
printf -- '-- %s/cmdline --\n' "$1"; tr '\0' '\n' <cmdline
printf -- '-- %s/exe --\n-> %s\n' "$1" "$(readlink exe)"
printf -- '-- %s/maps --\n' "$1"; cat maps
for fd in fd/*; do printf -- '-- %s/%s --\n-> %s\n' "$1" "$fd" "$(readlink "$fd")"; done
for t in task/*; do
	for f in comm syscall; do printf -- '-- %s/%s/%s --\n' "$1" "$t" $f; cat "$t/$f"; done
done
