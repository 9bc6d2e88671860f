#!/bin/bash
# Adds a user, or changes a password: EMAIL and PASSWORD are taken from the environment, or asked for.
set -eu
root=${ROOT:-}
users=$root/data/dovecot/users
[ -n "${EMAIL:-}" ] || read -r -p "Email (full address): " EMAIL
if [ -z "${PASSWORD:-}" ]; then
    read -r -s -p "Password: " PASSWORD
    echo
fi
EMAIL=${EMAIL,,}
case $EMAIL in
*[!a-z0-9.@_+-]* | *@*@* | @* | *@ | *..*)
    echo "$EMAIL is not an address that can be used here" >&2
    exit 1
    ;;
*@*) ;;
*)
    echo "$EMAIL has no domain" >&2
    exit 1
    ;;
esac
# doveadm asks twice for what is not on its command line, which everybody could see.
hash=$(printf '%s\n%s\n' "$PASSWORD" "$PASSWORD" | doveadm pw -s SHA512-CRYPT 2>/dev/null | tail -n 1)
case $hash in
'{SHA512-CRYPT}'*) ;;
*)
    echo "doveadm made no hash of the password" >&2
    exit 1
    ;;
esac
mkdir -p "$root/data/chasquid/domains/${EMAIL#*@}"
umask 027
new=$(mktemp "$users.XXXXXX")
awk -F: -v user="$EMAIL" '$1 != user' "$users" >"$new"
printf '%s:%s::::\n' "$EMAIL" "$hash" >>"$new"
chown --reference="$users" "$new"
chmod 640 "$new"
mv "$new" "$users"
echo "$EMAIL added to $users"
