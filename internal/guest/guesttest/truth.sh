# What the guest says of itself. Runs in the guest; each part begins with a line "=== NAME".
part() { echo "=== $1"; }
echo 0 >/proc/sys/kernel/kptr_restrict
(sleep 1000 & exec sleep 1001) &
# Containers, by the names that runtimes give their cgroups, in both hierarchies; one has namespaces of its own.
id=123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
mkdir -p /tmp/freezer "/sys/fs/cgroup/system.slice/docker-0$id.scope" /sys/fs/cgroup/machine.slice/systemd-nspawn@web.service
mount -t cgroup -o freezer freezer /tmp/freezer && mkdir -p "/tmp/freezer/docker/f$id"
within() { sh -c 'echo 0 >"$0/cgroup.procs"; exec "$@"' "$@" & }
within "/sys/fs/cgroup/system.slice/docker-0$id.scope" unshare -fpmuinC --mount-proc sleep 1002
within /sys/fs/cgroup/machine.slice/systemd-nspawn@web.service sleep 1003
[ -d "/tmp/freezer/docker/f$id" ] && within "/tmp/freezer/docker/f$id" sleep 1004
sleep 0.3
for f in kallsyms modules self/mountinfo uptime; do part $f; cat /proc/$f; done
part dmesg; dmesg
for p in /proc/[0-9]*; do
	part "${p#/proc/}"
	read -r stat <$p/stat && echo "$stat"
	cat $p/status $p/cgroup
	readlink $p/ns/cgroup $p/ns/ipc $p/ns/mnt $p/ns/net $p/ns/pid $p/ns/user $p/ns/uts
	echo "Cmdline: $(tr '\0' ' ' <$p/cmdline)"
	[ -e $p/stack ] && sed 's/^/Stack: /' $p/stack
	sed 's/^/Map: /' $p/maps
done
part end
echo
sleep 1000
