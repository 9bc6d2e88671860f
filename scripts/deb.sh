#!/usr/bin/env bash
# Builds OUT/chasquid_VERSION_ARCH.deb out of the binary BIN (dist and ./chasquid unless set). It takes the place of Debian's own
# package: same name, paths, user, units and configuration files, so that installing it is an upgrade in place.
set -eu
cd "$(dirname "$0")/.."
version=${1:-}
version=${version#v}
bin=${BIN:-./chasquid}
out=${OUT:-dist}
# Debian versions start with a digit; 2: sorts after every version of the packaged one.
case $version in
[0-9]*.[0-9]*) version=2:$version ;;
*) version=2:0~$(date -u -d "@${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}" +%Y%m%d)${version:++$version} ;;
esac
version=${version//-/+}
arch=$(dpkg --print-architecture)
root=$out/deb
rm -rf "$root"
mkdir -p "$root/DEBIAN" "$root/usr/bin" "$root/usr/share/doc/chasquid/monitoring" "$root/lib/systemd/system" "$root/etc/chasquid/certs"

install -m 755 "$bin" "$root/usr/bin/chasquid"
for l in chasquid-util mda-lmtp smtp-check; do ln -s chasquid "$root/usr/bin/$l"; done
install -m 644 README.md docs/*.md "$root/usr/share/doc/chasquid/"
install -m 644 monitoring/*.yml monitoring/*.json "$root/usr/share/doc/chasquid/monitoring/"
install -m 644 LICENSE "$root/usr/share/doc/chasquid/copyright"
install -m 644 etc/systemd/strict.conf "$root/usr/share/doc/chasquid/strict.conf"
for m in docs/man/*.[1-8]; do
    [ -e "$m" ] || continue
    install -D -m 644 "$m" "$root/usr/share/man/man${m##*.}/${m##*/}"
    gzip -9n "$root/usr/share/man/man${m##*.}/${m##*/}"
done
for u in etc/systemd/system/*; do
    sed -e 's,/usr/local/bin/,/usr/bin/,; s/^\(User\|Group\)=mail/\1=chasquid/' "$u" >"$root/lib/systemd/system/${u##*/}"
done
# Debian's package listens on systemd's sockets, which are the built-in default.
sed -i '/^Wants=/i Requires=chasquid-smtp.socket chasquid-submission.socket chasquid-submission_tls.socket' "$root/lib/systemd/system/chasquid.service"
# Settings and hook belong to the administrator from the first installation on: they are not conffiles, or an upgrade of Debian's package
# with settings of one's own would stop and ask.
mkdir -p "$root/usr/share/chasquid" "$root/etc/chasquid/hooks"
sed 's/^\(smtp\|submission\|submission_over_tls\)_address: .*/#&/' etc/chasquid/chasquid.conf >"$root/usr/share/chasquid/chasquid.conf"
install -m 755 etc/chasquid/hooks/post-data "$root/usr/share/chasquid/post-data"
install -D -m 644 etc/chasquid/domains/README "$root/etc/chasquid/domains/README"
install -D -m 644 etc/fail2ban/filter.d/chasquid.conf "$root/etc/fail2ban/filter.d/chasquid.conf"
install -D -m 644 etc/logrotate.d/chasquid "$root/etc/logrotate.d/chasquid"
sed -i 's/mail mail/chasquid chasquid/' "$root/etc/logrotate.d/chasquid"
mkdir -p "$root/usr/lib/tmpfiles.d"
sed 's/ mail mail / chasquid chasquid /' etc/tmpfiles.d/chasquid.conf >"$root/usr/lib/tmpfiles.d/chasquid.conf"
(cd "$root" && find etc -type f ! -path 'etc/letsencrypt/*' | sed 's,^,/,' | sort) >"$root/DEBIAN/conffiles"

cat >"$root/DEBIAN/control" <<END
Package: chasquid
Version: $version
Architecture: $arch
Maintainer: chasquid <chasquid@localhost>
Section: mail
Priority: optional
Depends: adduser
Suggests: dovecot-lmtpd, maildrop, fail2ban, prometheus, prometheus-blackbox-exporter
Installed-Size: $(du -sk "$root/usr" | cut -f1)
Homepage: https://blitiri.com.ar/p/chasquid
Description: SMTP server that explains itself
 One program that receives, queues and delivers mail, with its monitoring built
 in. It takes the configuration, the data and the tools of earlier versions.
END
cp scripts/deb.postinst "$root/DEBIAN/postinst"
cp scripts/deb.prerm "$root/DEBIAN/prerm"
cp scripts/deb.postrm "$root/DEBIAN/postrm"
chmod 755 "$root/DEBIAN/post"* "$root/DEBIAN/prerm"
dpkg-deb -Z"${COMPRESS:-xz}" --root-owner-group --build "$root" "$out/chasquid_${version#*:}_$arch.deb"
