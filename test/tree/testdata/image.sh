#!/bin/bash
# Runs in namespaces of its own: image.sh STEPS. Makes the image on a copy of this machine's file system and runs its entrypoint.
set -eu
steps=$1
w=$(mktemp -d)
mount -t tmpfs none "$w"
mkdir "$w/upper" "$w/work" "$w/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$w/upper,workdir=$w/work" "$w/root"
r=$w/root
mount -t tmpfs none "$r/run"
mount --bind /dev "$r/dev"
mount -t proc none "$r/proc"
ip link set lo up
# The base image has few users, and none of our files.
rm -rf "$r/data" "$r/etc/chasquid"
rm -f "$r"/usr/bin/{chasquid,chasquid-util,mda-lmtp,smtp-check}
grep -E '^(root|daemon|bin|mail|nobody):' /etc/passwd >"$r/etc/passwd"
grep -E '^(root|daemon|bin|mail|nogroup):' /etc/group >"$r/etc/group"
: >"$r/etc/gshadow"
grep -E '^(root|daemon|bin|mail|nobody):' /etc/shadow >"$r/etc/shadow"
printf '#!/bin/sh\nexit 0\n' >"$w/stub"
chmod 755 "$w/stub"
cp "$w/stub" "$r/usr/bin/apt-get"
inside() { chroot "$r" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 "$@" </dev/null; }
say() { echo "WRONG: $*"; }
holds() { inside bash -c "$1" >/dev/null 2>&1 || say "$1"; }

echo "== the steps of the Dockerfile"
# shellcheck disable=SC1090
. "$steps"
holds 'test "$(id -u chasquid):$(id -g chasquid):$(id -u dovecot):$(id -g dovecot)" = 100:101:101:103'
holds 'test "$(readlink /usr/bin/mda-lmtp)" = chasquid && test -x /entrypoint.sh && test -x /add-user.sh'

# Stand-ins for what the packages would bring: Dovecot waits until it is told to stop, certbot makes a certificate.
cat >"$r/usr/sbin/dovecot" <<'END'
#!/bin/sh
echo "$*" >/run/dovecot.args
echo $$ >/run/dovecot.pid
trap 'exit 0' TERM
while :; do sleep 0.1; done
END
cat >"$r/usr/bin/certbot" <<'END'
#!/bin/sh
echo "$*" >>/run/certbot.args
for name; do :; done
d=/data/letsencrypt/live/$name
mkdir -p "$d"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$name" -addext "subjectAltName=DNS:$name" -days 90 \
    -keyout "$d/privkey.pem" -out "$d/fullchain.pem" 2>/dev/null
chmod 600 "$d/privkey.pem"
END
chmod 755 "$r/usr/sbin/dovecot" "$r/usr/bin/certbot"
: >"$r/etc/dovecot/dovecot.conf" # this machine's doveadm is of another version than the image's

echo "== without a certificate"
inside /entrypoint.sh >"$w/out" 2>&1 && say "it starts"
grep -q 'set AUTO_CERTS and CERTS_MAIL' "$w/out" || say "it does not say why: $(cat "$w/out")"
inside env AUTO_CERTS=mx.example.org /entrypoint.sh >"$w/out" 2>&1 && say "it asks for certificates without a contact"

# start VARIABLE=VALUE...: runs the container until it is healthy.
start() {
    inside env "$@" /entrypoint.sh >"$w/log" 2>&1 &
    container=$!
    for _ in $(seq 600); do
        ! inside /entrypoint.sh healthy 2>/dev/null || return 0
        kill -0 $container 2>/dev/null || break
        sleep 0.1
    done
    say "it is not healthy"
    cat "$w/log"
}

echo "== with certificates made at the start, and a user"
holds 'mkdir -p /data/chasquid/domains/example.org /data/dovecot && touch /data/dovecot/users'
start AUTO_CERTS="mx.example.org mail.example.org" CERTS_MAIL=root@example.org
holds 'grep -q "^hostname: \"mx.example.org\"$" /etc/chasquid/chasquid.conf'
holds 'test "$(wc -l </run/certbot.args)" = 2 && grep -q -- "--agree-tos --email root@example.org" /run/certbot.args'
holds 'grep -q "^ssl_server_cert_file = /data/letsencrypt/live/mx.example.org/fullchain.pem$" /run/chasquid-image/dovecot-tls.conf'
holds 'grep -q -- "-F -c /etc/dovecot/dovecot.conf" /run/dovecot.args'
holds 'test "$(stat -c %U:%a /data/chasquid/data)" = chasquid:700'
holds 'test "$(stat -c %U "/proc/$(pgrep -n -x chasquid)")" = chasquid'
for port in 25 587 465; do
    holds "exec 3<>/dev/tcp/127.0.0.1/$port"
done
holds 'exec 3<>/dev/tcp/127.0.0.1/25 && read -r line <&3 && [[ $line == "220 mx.example.org "* ]]'
holds 'EMAIL=Ana@example.org PASSWORD=first /add-user.sh && EMAIL=bob@example.org PASSWORD=x /add-user.sh && EMAIL=ana@example.org PASSWORD="a secret: x" /add-user.sh'
holds 'test "$(cut -d: -f1 /data/dovecot/users | paste -sd " ")" = "bob@example.org ana@example.org"'
holds 'doveadm pw -t "$(grep ^ana@ /data/dovecot/users | cut -d: -f2)" -p "a secret: x"'
holds 'test "$(stat -c %U:%a /data/dovecot/users)" = dovecot:640'
for bad in 'x' '../x@y' 'a@b@c' 'a b@c' '@c' 'a@'; do
    holds "! EMAIL='$bad' PASSWORD=x /add-user.sh"
done

echo "== one daemon ends, and the container does"
inside sh -c 'kill -TERM "$(cat /run/dovecot.pid)"'
status=0
wait $container || status=$?
[ $status != 0 ] || say "the status is 0"
grep -q 'A daemon ended by itself' "$w/log" || { say "it does not say why"; cat "$w/log"; }

echo "== the same volume again, with settings of one's own, and an orderly stop"
inside sh -c 'echo "max_recipients: 4711" >/data/chasquid/overrides.conf'
start X=1
holds 'test "$(wc -l </run/certbot.args)" = 2' # nothing is asked for again
grep -q 'max_recipients: 4711' "$w/log" || say "the overrides are not used"
inside sh -c 'kill -TERM $(pgrep -o -f "bash /entrypoint.sh")'
status=0
wait $container || status=$?
[ $status = 0 ] || { say "the status is $status"; cat "$w/log"; }
grep -q 'chasquid stopped' "$w/log" || say "the server was not stopped in order"
echo "== done"
