#!/bin/sh
# Makes the secrets that are missing in a folder, for the user of the containers alone: make-secrets.sh FOLDER
#
#   token             bearer token of predictions
#   page.password     of the page, whose user is `segserve`; page.htpasswd is what the proxy compares
#   grafana.password  of Grafana, whose user is `admin`
#   tls.crt, tls.key  a certificate for localhost that no authority has signed
set -eu
umask 077
cd "$1"

[ -s token ] || openssl rand -hex 32 >token
[ -s page.password ] || openssl rand -hex 12 >page.password
[ -s grafana.password ] || openssl rand -hex 12 >grafana.password
printf 'segserve:%s\n' "$(openssl passwd -apr1 -in page.password)" >page.htpasswd
[ -s tls.key ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 365 -subj /CN=localhost \
  -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout tls.key -out tls.crt 2>/dev/null
[ "$(id -u)" != 0 ] || chown -R 10001:10001 .
