#!/bin/sh
# Runs the Dockerfile's steps without Docker, as root: in a bare Debian made by debootstrap, it installs the wheel in dist/ and
# runs the image's command as the image's user.
#   check.sh DIRECTORY [EXTRAS]
# DIRECTORY is made, and removed at the end. A copy of this machine's pip configuration and certificates is used, where there are any.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$1
extras=${2:-cpu,kafka,postgres,s3}
[ ! -e "$root" ] || { echo "check.sh: $root exists" >&2; exit 2; }
finish() {
  umount "$root/proc" 2>/dev/null || true
  rm -rf --one-file-system "$root"
}
trap finish EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$root" >/dev/null
mount -t proc proc "$root/proc"
cp /etc/resolv.conf "$root/etc/"
if [ -d /usr/local/share/ca-certificates ]; then cp -r /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates/"; fi
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
if [ -f /etc/pip.conf ]; then cp /etc/pip.conf "$root/etc/"; fi
mkdir "$root/wheels"
cp "$here"/../../dist/vicinage-*.whl "$root/wheels/"
cp "$here/install.sh" "$root/"
inside() { chroot "$root" /usr/bin/env -i PATH=/opt/vicinage/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
inside sh /install.sh /wheels "$extras"
inside useradd --system --uid 10001 --home-dir /var/lib/vicinage --create-home --shell /usr/sbin/nologin vicinage
du -sh "$root/opt/vicinage"
inside chroot --userspec=10001:10001 / /usr/bin/env HOME=/var/lib/vicinage VICINAGE_DATA=/var/lib/vicinage/data sh -ec '
  cd /var/lib/vicinage
  vicinage doctor --port 18180
  vicinage demo
  vicinage up --port 18180 --detach
  vicinage status --json
  vicinage down'
echo "the steps of the image work"
