#!/bin/sh
# What the official image's entry point does with the variables that the deployments set: a new data folder gets its
# superuser, password and database, then the server starts.
set -eu
data=${PGDATA:-/var/lib/postgresql/data}
user=${POSTGRES_USER:-postgres}
name=${POSTGRES_DB:-$user}

if [ ! -s "$data/PG_VERSION" ]; then
  if [ ! -s "${POSTGRES_PASSWORD_FILE:-}" ] || [ ! -r "$POSTGRES_PASSWORD_FILE" ]; then
    echo "error: POSTGRES_PASSWORD_FILE names no file with a password that uid $(id -u) can read" >&2
    exit 1
  fi
  # shellcheck disable=SC2086  # a list of options
  initdb --pgdata="$data" --username="$user" --pwfile="$POSTGRES_PASSWORD_FILE" --encoding=UTF8 --locale=C.UTF-8 \
    --auth-local=trust ${POSTGRES_INITDB_ARGS:-}
  printf 'host all all all scram-sha-256\n' >>"$data/pg_hba.conf"
  if [ "$name" != postgres ]; then
    printf 'CREATE DATABASE "%s";\n' "$name" | postgres --single -D "$data" postgres >/dev/null
  fi
fi
exec postgres -D "$data" -c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql
