#!/bin/sh
# The first process of one host, in namespaces of its own: mounts what a machine has for itself, then
# answers ssh. When this process ends, so does every process of the host.
# Usage: host.sh FOLDER NAME [PATH...]; the paths are read-only parts of the real home, such as an
# interpreter, that the host's own home must show too.
set -eu
folder=$1 name=$2
shift 2
hostname "$name"
mkdir -p /tmp/ray /run/sshd
mount --bind "$folder/ray" /tmp/ray
# as Debian does; a name that nobody knows would cost Ray half a minute
printf "127.0.0.1 localhost\n127.0.1.1 %s\n" "$name" > "$folder/hosts"
mount --bind "$folder/hosts" /etc/hosts
mount -t tmpfs -o size=50% tmpfs /dev/shm
for path in "$@"; do
  mkdir -p "$folder/home/${path#"$HOME"/}"
  mount --bind "$path" "$folder/home/${path#"$HOME"/}"
done
mount --rbind "$folder/home" "$HOME"
/usr/sbin/sshd -D -e -f /dev/null -h "$folder/host_key" -o PidFile=none -o UsePAM=no \
  -o PermitRootLogin=yes -o StrictModes=no &
while :; do wait; sleep 1; done # reaps what the host's processes leave behind
