# What the guest says of itself. Runs in the guest; each part begins with a line "=== NAME".
part() { echo "=== $1"; }
echo 0 >/proc/sys/kernel/kptr_restrict
(sleep 1000 & exec sleep 1001) &
sleep 0.3
for f in kallsyms modules self/mountinfo uptime; do part $f; cat /proc/$f; done
part dmesg; dmesg
for p in /proc/[0-9]*; do
	part "${p#/proc/}"
	read -r stat <$p/stat && echo "$stat"
	cat $p/status $p/cgroup
	echo "Cmdline: $(tr '\0' ' ' <$p/cmdline)"
	[ -e $p/stack ] && sed 's/^/Stack: /' $p/stack
	sed 's/^/Map: /' $p/maps
done
part end
echo
sleep 1000
