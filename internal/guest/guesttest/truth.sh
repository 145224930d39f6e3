# What the guest says of itself; each part begins with a line "=== NAME". Runs in the guest: without arguments all, with numbers those processes.
part() { echo "=== $1"; }

tell() {
	p=/proc/$1
	{ read -r stat <$p/stat; } 2>/dev/null || return
	part $1
	echo "Stat: $stat"
	cat $p/status $p/cgroup
	echo "Cmdline: $(tr '\0' ' ' <$p/cmdline)"
	[ -e $p/stack ] && sed 's/^/Stack: /' $p/stack
	grep ctxt_switches $p/status # once more: what did not run meanwhile must agree
	ls -l $p/ns | sed -n 's/.* -> /Ns: /p'
	[ -e $p/exe ] || return # a kernel thread, or a zombie
	sed 's/^/Map: /' $p/maps
	sed 's/^/Mount: /' $p/mountinfo
	ls -l $p/fd | sed -n 's/.* \([0-9]*\) -> /File: \1 /p' | sort -k2n
} 2>/dev/null

end() {
	part end
	echo
}

if [ $# -gt 0 ]; then
	for p; do tell $p; done
	end
	exit
fi

# within CGROUP COMMAND… runs a command in a control group of its own.
within() {
	mkdir -p $1
	(echo 0 >$1/cgroup.procs && shift && exec "$@") &
}

echo 0 >/proc/sys/kernel/kptr_restrict
(sleep 1000 & exec sleep 1001) &
# Containers, by the names that runtimes give their cgroups, in both hierarchies; some have namespaces of their own.
id=123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
v2=/sys/fs/cgroup
within $v2/system.slice/docker-0$id.scope unshare -m -u -i -n -p -C -f --mount-proc sh -c 'hostname inner; mount -t tmpfs inner /mnt; exec sleep 1002'
within $v2/machine.slice/systemd-nspawn@web.service sleep 1003
within $v2/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-1$id.scope unshare -m -U -r sleep 1004
mkdir /tmp/freezer
mount -t cgroup -o freezer freezer /tmp/freezer && within /tmp/freezer/docker/f$id sleep 1005
(true & exec sleep 1006 >/dev/null 9>/tmp/gone) & # a zombie's parent
(exec setpriv --reuid=65534 --clear-groups sleep 1007) &
(sh -c 'kill -STOP $$') & # is stopped
perl - <<'SOCKETS' &
use Socket qw(:all);
sub made { socket(my $s, $_[0], $_[1], 0) or die $!; push @kept, $s; $s }
for (["127.0.0.1", AF_INET], ["::1", AF_INET6]) {
	my ($host, $family) = @$_;
	my $at = sub { $family == AF_INET ? pack_sockaddr_in($_[0], inet_pton(AF_INET, $host)) : pack_sockaddr_in6($_[0], inet_pton(AF_INET6, $host)) };
	my $l = made($family, SOCK_STREAM); bind($l, $at->(4321)) && listen($l, 7) or die $!;
	my $c = made($family, SOCK_STREAM); connect($c, $at->(4321)) or die $!; syswrite($c, "hello");
	accept(my $a, $l) or die $!; push @kept, $a;
	bind(made($family, SOCK_DGRAM), $at->(5353)) or die $!;
}
my $u = made(AF_UNIX, SOCK_STREAM); bind($u, pack_sockaddr_un("/tmp/truth.sock")) && listen($u, 1) or die $!;
my $c = made(AF_UNIX, SOCK_STREAM); connect($c, pack_sockaddr_un("/tmp/truth.sock")) or die $!;
accept(my $a, $u) or die $!;
bind(made(AF_UNIX, SOCK_DGRAM), pack("S a*", AF_UNIX, "\0abstract")) or die $!;
sleep 1000;
SOCKETS
sleep 1
rm -f /tmp/gone
for f in net/tcp net/tcp6 net/udp net/udp6 net/unix; do part $f; cat /proc/$f; done
for f in kallsyms modules uptime; do part $f; cat /proc/$f; done
part flags; grep -m1 ^flags /proc/cpuinfo
part btf; sha256sum </sys/kernel/btf/vmlinux
part shell; echo $$
part ps; ps -e -o pid=,ppid=,euid=,nlwp=,comm= --no-headers
part dmesg; dmesg
for p in /proc/[0-9]*; do tell ${p#/proc/}; done
end
exec sleep 1000
