#!/bin/sh
# Runs in a mount namespace of its own: upgrade.sh DEBIANS.deb OURS.deb. On a copy of this machine's file system that is thrown away,
# Debian's package is installed and used, then ours over it, then ours is removed and purged. Prints what does not hold.
set -eu
old=$1 new=$2
w=$(mktemp -d)
mount -t tmpfs none "$w"
mkdir "$w/upper" "$w/work" "$w/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$w/upper,workdir=$w/work" "$w/root"
r=$w/root
mount -t tmpfs none "$r/run" # no systemd: services are not started
mount --bind /dev "$r/dev"
mount -t proc none "$r/proc"
cp "$old" "$r/old.deb"
cp "$new" "$r/new.deb"
[ ! -e "$r/usr/bin/mandb" ] || ln -sf /bin/true "$r/usr/bin/mandb" # an index of manuals that takes long
step() { echo "== $* ($(cut -d. -f1 /proc/uptime))"; }
inside() { chroot "$r" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 "$@" </dev/null; }
say() { echo "WRONG: $*"; }
holds() { inside sh -c "$1" >/dev/null 2>&1 || say "$1"; }

step "Debian's package, with a configuration"
inside dpkg --purge chasquid >/dev/null 2>&1 || true
inside dpkg -i /old.deb
cat >"$r/prepare.sh" <<'END'
echo "hostname: \"mail.example.org\"" >>/etc/chasquid/chasquid.conf
echo "# mine" >>/etc/chasquid/hooks/post-data
mkdir -p /etc/chasquid/certs/mail.example.org /etc/chasquid/domains/example.org
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=mail.example.org -addext subjectAltName=DNS:mail.example.org \
    -days 90 -keyout /etc/chasquid/certs/mail.example.org/privkey.pem -out /etc/chasquid/certs/mail.example.org/fullchain.pem 2>/dev/null
chmod 640 /etc/chasquid/certs/mail.example.org/privkey.pem
chasquid-util user-add ana@example.org --password=secret
echo "info: ana" >/etc/chasquid/domains/example.org/aliases
chown -R chasquid:chasquid /etc/chasquid/certs /etc/chasquid/domains
mkdir -p /var/lib/chasquid/queue /var/lib/chasquid/domaininfo
cat >/var/lib/chasquid/queue/m:abc <<'ITEM'
ID: "abc" from: "ana@example.org" To: "x@example.net" rcpt: { address: "x@example.net" original_address: "x@example.net" }
data: "Subject: kept\n\nkept\n"
ITEM
echo "created_at_ts: { seconds: $(date +%s) }" >>/var/lib/chasquid/queue/m:abc
printf "name: \"example.net\"\noutgoing_sec_level: TLS_SECURE\n" >/var/lib/chasquid/domaininfo/s:example.net
chown -R chasquid:chasquid /var/lib/chasquid
cd / && find /etc/chasquid -type f | sort | xargs sha256sum >/before
END
inside sh -eu /prepare.sh

step "the upgrade"
inside dpkg -i /new.deb || say "the upgrade fails"
holds 'sha256sum -c /before'
holds 'test -e /var/lib/chasquid/queue/m:abc && test -e /var/lib/chasquid/domaininfo/s:example.net'
holds 'test "$(stat -c %U:%G:%a /var/lib/chasquid)" = chasquid:chasquid:700'
holds 'test -z "$(dpkg --audit)"'
holds 'dpkg-query -W -f "\${Status}\n" chasquid | grep -qx "install ok installed"'
holds 'test "$(readlink /usr/bin/chasquid-util)" = chasquid'
holds 'chasquid-util authenticate ana@example.org --password=secret'
holds 'chasquid-util print-config | grep -q mail.example.org'
holds 'test -e /etc/systemd/system/multi-user.target.wants/chasquid.service' # Debian's package enabled it
holds 'test -z "$(find /etc/chasquid /etc/fail2ban /etc/logrotate.d -name "*.dpkg-*")"'
inside chasquid check -no_dns || say "the check fails"

step "the server takes the queue over, as the user of the package"
inside setpriv --reuid=chasquid --regid=chasquid --clear-groups timeout 5 chasquid -config_overrides \
    'smtp_address: "127.0.0.1:2525" submission_address: "127.0.0.1:2587" submission_over_tls_address: "127.0.0.1:2465" mail_log_path: "<stdout>" dns_server: "127.0.0.1:1" local_delivery: "maildir:/var/lib/chasquid/mail/%to_user%"' >"$w/log" 2>&1 || true
grep -q 'Imported 1 messages' "$w/log" || { say "the queue was not imported"; cat "$w/log"; }
holds 'chasquid queue export /back && test -e /back/m:*'

step "upgrade to the same again, and removal"
inside dpkg -i /new.deb >/dev/null || say "a second upgrade fails"
holds 'sha256sum -c /before'
inside dpkg -r chasquid >/dev/null || say "the removal fails"
holds 'sha256sum -c /before'
holds 'test ! -e /usr/bin/chasquid && test ! -e /usr/bin/chasquid-util && test -d /var/lib/chasquid/queue'
inside dpkg -i /new.deb >/dev/null || say "the installation after a removal fails"
holds 'sha256sum -c /before'

step "purge"
inside dpkg --purge chasquid || say "the purge fails"
holds 'test ! -e /etc/chasquid/chasquid.conf && test ! -e /etc/fail2ban/filter.d/chasquid.conf && test ! -e /etc/logrotate.d/chasquid'
holds 'test -e /etc/chasquid/domains/example.org/users'
holds 'test -n "$(find /var/lib/chasquid/queue -type f)" && test ! -e /var/lib/chasquid/domaininfo'
holds 'test ! -e /etc/systemd/system/multi-user.target.wants/chasquid.service'
inside dpkg -i /new.deb >/dev/null
inside env CHASQUID_PURGE_DATA=yes dpkg --purge chasquid >/dev/null || say "the purge with data fails"
holds 'test ! -e /var/lib/chasquid'

step "a first installation"
inside rm -rf /etc/chasquid
inside dpkg -i /new.deb || say "the first installation fails"
holds 'test -e /etc/chasquid/chasquid.conf && test -x /etc/chasquid/hooks/post-data && ! test -e /etc/systemd/system/multi-user.target.wants/chasquid.service'
holds 'chasquid setup example.net -password=x && chasquid check -no_dns'
inside dpkg --purge chasquid >/dev/null 2>&1 || say "the purge of a first installation fails"
holds 'test ! -e /etc/chasquid/chasquid.conf'
echo "== done"
