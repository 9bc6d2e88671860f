#!/bin/bash
# Prepares /data, gets certificates if asked to, and runs Dovecot and chasquid until one of them ends or the container is stopped.
#
#   AUTO_CERTS       host names to get certificates for, the first is that of the server
#   CERTS_MAIL       contact for the authority; with AUTO_CERTS, it says that you agree to its terms
#   SKIP_CERT_CHECK  not empty: start without a look at the certificates
#   MAIL_HOSTNAME    host name of the server, if it is not the first one with a certificate
#
# ROOT is for tests: the paths of everything are below it.
set -eu
root=${ROOT:-}
data=$root/data

if [ "${1:-}" = healthy ]; then
    exec bash -c 'exec 3<>/dev/tcp/127.0.0.1/1099 && printf "GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n" >&3 && grep -q "^ok" <&3'
fi

prepare() {
    mkdir -p "$data"/chasquid/{data,domains,hooks} "$data/dovecot" "$data/mail" "$data/letsencrypt/live" "$root/run/dovecot" "$root/run/chasquid-image"
    touch "$data/dovecot/users" "$data/chasquid/mail.log"
    chown dovecot:dovecot "$data/dovecot/users"
    chmod 640 "$data/dovecot/users"
    chown chasquid:chasquid "$data/chasquid" "$data/chasquid/data" "$data/chasquid/mail.log" "$data/mail"
    chmod 700 "$data/chasquid/data"
}

# A certificate for every name, at the first start; later certbot renews them.
get_certificates() {
    local name
    [ -n "${AUTO_CERTS:-}" ] || return 0
    if [ -z "${CERTS_MAIL:-}" ]; then
        echo "AUTO_CERTS is set and CERTS_MAIL is not: set it to an address for the authority" >&2
        exit 1
    fi
    for name in $AUTO_CERTS; do
        [ -e "$data/letsencrypt/live/$name/fullchain.pem" ] ||
            certbot certonly --non-interactive --standalone --agree-tos --email "$CERTS_MAIL" --config-dir "$data/letsencrypt" --domain "$name"
    done
}

# The server's user has to read keys that certbot makes for root.
share_certificates() {
    chgrp -R chasquid "$data/letsencrypt/live"
    chmod -R g+rX "$data/letsencrypt/live"
    if [ -d "$data/letsencrypt/archive" ]; then
        chgrp -R chasquid "$data/letsencrypt/archive"
        chmod -R g+rX "$data/letsencrypt/archive"
    fi
}

first_certificate() {
    local f
    for f in "$data/letsencrypt/live"/*/fullchain.pem; do
        [ ! -e "$f" ] || { basename "$(dirname "$f")"; return; }
    done
}

# The host name of the server stands in its settings.
name_server() {
    local name=${MAIL_HOSTNAME:-}
    [ -n "$name" ] || read -r name _ <<<"${AUTO_CERTS:-}"
    [ -n "$name" ] || name=$(first_certificate)
    [ -n "$name" ] || name=$(hostname -f)
    sed -i "s/^hostname:.*/hostname: \"$name\"/" "$root/etc/chasquid/chasquid.conf"
    tls=$data/letsencrypt/live/$name
    [ -e "$tls/fullchain.pem" ] || tls=$data/letsencrypt/live/$(first_certificate)
    printf 'ssl_server_cert_file = %s\nssl_server_key_file = %s\n' "$tls/fullchain.pem" "$tls/privkey.pem" >"$root/run/chasquid-image/dovecot-tls.conf"
}

check_certificates() {
    [ -z "${SKIP_CERT_CHECK:-}" ] || return 0
    if [ -z "$(first_certificate)" ]; then
        echo "There is no certificate: set AUTO_CERTS and CERTS_MAIL, put some into /data/letsencrypt/live/NAME/, or set SKIP_CERT_CHECK=1" >&2
        exit 1
    fi
}

prepare
get_certificates
check_certificates
share_certificates
name_server

overrides=
[ ! -e "$data/chasquid/overrides.conf" ] || overrides=$(cat "$data/chasquid/overrides.conf")

renew() {
    while sleep "${RENEW_EVERY:-43200}"; do
        certbot renew --quiet --standalone --config-dir "$data/letsencrypt" || echo "certbot renew failed; the certificates in use stay" >&2
        share_certificates
        doveadm reload || true # chasquid looks by itself
    done
}

dovecot -F -c "$root/etc/dovecot/dovecot.conf" &
dovecot=$!
# Ports below 1024, and no other right of root.
setpriv --reuid chasquid --regid chasquid --clear-groups --inh-caps=-all,+net_bind_service --ambient-caps=-all,+net_bind_service --bounding-set=-all,+net_bind_service \
    chasquid -config_dir "$root/etc/chasquid" -config_overrides "$overrides" &
chasquid=$!
renewing=
if [ -n "${AUTO_CERTS:-}" ]; then
    renew &
    renewing=$!
fi

stopping=
trap 'stopping=1; kill -TERM "$dovecot" "$chasquid" 2>/dev/null || true' TERM INT
trap 'kill -HUP "$chasquid" 2>/dev/null || true; doveadm reload || true' HUP

# One without the other is no mail server: when either ends, the container does, and whoever runs it starts it again.
status=0
while kill -0 "$dovecot" 2>/dev/null && kill -0 "$chasquid" 2>/dev/null; do
    wait -n "$dovecot" "$chasquid" && status=0 || status=$?
done
[ -z "$renewing" ] || kill "$renewing" 2>/dev/null || true
kill -TERM "$dovecot" "$chasquid" 2>/dev/null || true
wait "$dovecot" "$chasquid" || true
if [ -n "$stopping" ]; then
    exit 0
fi
echo "A daemon ended by itself, with status $status" >&2
[ "$status" != 0 ] || status=1
exit "$status"
