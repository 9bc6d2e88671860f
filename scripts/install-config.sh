#!/usr/bin/env bash
# Installs the example configuration, the units and the state directory below the given root. Configuration that exists is kept.
set -eu
cd "$(dirname "$0")/.."
root=${1:-}

keep() { # keep MODE FILE DESTINATION: install unless it is there
    if [ -e "$3" ] || [ -L "$3" ]; then
        echo "kept:      $3"
    else
        install -D -m "$1" "$2" "$3"
        echo "installed: $3"
    fi
}

owner=()
if [ "$(id -u)" = 0 ] && getent passwd mail >/dev/null; then
    owner=(-o mail -g mail)
fi

keep 644 etc/chasquid/chasquid.conf "$root/etc/chasquid/chasquid.conf"
keep 755 etc/chasquid/hooks/post-data "$root/etc/chasquid/hooks/post-data"
install -d "${owner[@]}" -m 755 "$root/etc/chasquid/domains"
keep 644 etc/chasquid/domains/README "$root/etc/chasquid/domains/README"
if [ ! -e "$root/etc/chasquid/certs" ] && [ ! -L "$root/etc/chasquid/certs" ]; then
    ln -s /etc/letsencrypt/live/ "$root/etc/chasquid/certs"
    echo "installed: $root/etc/chasquid/certs -> /etc/letsencrypt/live/"
fi
for u in etc/systemd/system/*; do
    keep 644 "$u" "$root/$u"
done
for f in etc/sysusers.d/chasquid.conf etc/tmpfiles.d/chasquid.conf etc/logrotate.d/chasquid etc/fail2ban/filter.d/chasquid.conf; do
    keep 644 "$f" "$root/$f"
done
install -d "${owner[@]}" -m 700 "$root/var/lib/chasquid"
