# shellcheck shell=sh disable=SC2016
# Runs as pid 1 of the mail server's own pid, mount and uts namespaces, in the
# network namespace of its host. Everything below is mounted in here only, so
# it is gone when this process is, however it ends.
#
# $1 the root nobody writes to, $2 the working folder (root, upper, work, conf,
# dovecot, log), $3 host name, $4 "copy" to do without an overlay
set -e
mount --make-rprivate /
cd "$2"
# An overlay cannot stand on another overlay (a container's disk): copy then.
if [ "$4" = copy ] ||
	! mount -t overlay -o "lowerdir=$1,upperdir=upper,workdir=work" overlay root 2>/dev/null
then
	cp -a "$1/." root/
	mount --bind root root
fi
# Plain folders of the host: the log can be read, and the configuration be
# looked at, from outside.
mount --bind conf root/etc/postfix
mount --bind dovecot root/etc/dovecot
mount --bind log root/var/log
cp localtime root/etc/localtime 2>/dev/null || true
cp resolv.conf root/etc/resolv.conf
mount -t tmpfs -o mode=755 tmpfs root/dev
for node in null zero full random urandom; do
	: >root/dev/$node
	mount --bind /dev/$node root/dev/$node
done
mount -t proc proc root/proc
echo "$3" >/proc/sys/kernel/hostname

# Leave the host's mounts behind: otherwise this namespace would keep copies
# of them busy, other labs' network namespaces among them.
cd root
pivot_root . old-root
exec chroot . /bin/sh -ec '
	umount -l /old-root
	# Postfix makes its queue folders at its first start, Dovecot wants this
	# one before.
	install -d -o postfix -m 700 /var/spool/postfix/private
	dovecot
	# smtpd dies without its SASL socket, and master then waits a minute
	# before it starts another.
	tries=0
	until [ -S /var/spool/postfix/private/auth ]; do
		tries=$((tries + 1))
		[ $tries -lt 500 ] || { echo "no SASL socket from Dovecot" >&2; exit 1; }
		sleep 0.01
	done
	exec postfix start-fg
' </dev/null
