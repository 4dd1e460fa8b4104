# shellcheck shell=sh disable=SC2016
# Runs as pid 1 of the mail server's own pid, mount and uts namespaces, in the
# network namespace of its host. Everything below is mounted in here only, so
# it is gone when this process is, however it ends.
#
# $1 the root nobody writes to, $2 the working folder (root, upper, work and
# what follows), $3 host name, $4 "copy" to do without an overlay, $5 a script
# that becomes the server; then DIR:TARGET, folders of $2 and where in the root
# they are seen
set -e
mount --make-rprivate /
cd "$2"
lower=$1
name=$3
mode=$4
server=$5
shift 5
# An overlay cannot stand on another overlay (a container's disk): copy then.
if [ "$mode" = copy ] ||
	! mount -t overlay -o "lowerdir=$lower,upperdir=upper,workdir=work" overlay root 2>/dev/null
then
	cp -a "$lower/." root/
	mount --bind root root
fi
# Plain folders of the host: the log can be read, and the configuration be
# looked at, from outside.
for dir; do
	mkdir -p "root/${dir#*:}"
	mount --bind "${dir%%:*}" "root/${dir#*:}"
done
cp localtime root/etc/localtime 2>/dev/null || true
cp resolv.conf root/etc/resolv.conf
[ -e root/var/run ] || ln -s /run root/var/run # base-files is no dependency of most
mount -t tmpfs -o mode=755 tmpfs root/dev
for node in null zero full random urandom; do
	: >root/dev/$node
	mount --bind /dev/$node root/dev/$node
done
mount -t proc proc root/proc
echo "$name" >/proc/sys/kernel/hostname

# Leave the host's mounts behind: otherwise this namespace would keep copies
# of them busy, other labs' network namespaces among them.
cd root
pivot_root . old-root
exec chroot . /bin/sh -ec '
	umount -l /old-root
	eval "$1"
' sh "$server" </dev/null
