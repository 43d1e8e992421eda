#!/bin/sh
# LiteLLM's database: a dump while it runs, or put back into a new database that takes the old one's place once it is whole.
#   postgres.sh save|restore
# /backup holds the dumps; the newest is put back unless BACKUP names another. KEEP dumps stay.
set -eu
say() { echo "$(date -u +%H:%M:%S) $*" >&2; }
PGPASSWORD=$(cat /run/secrets/postgres_password)
export PGPASSWORD PGHOST="${PGHOST:-postgres}" PGUSER="${PGUSER:-litellm}"
database=${PGDATABASE:-litellm}

case ${1:-} in
  save)
    # What a job left that was ended.
    rm -f /backup/llm-postgres-data-*.part
    file=/backup/llm-postgres-data-$(date -u +%Y%m%dT%H%M%SZ).dump
    pg_dump --format=custom --file="$file.part" "$database"
    mv "$file.part" "$file"
    say "saved $file"
    # The names sort by time. The jobs' images have a shell and coreutils for sure, and no findutils.
    set -- /backup/llm-postgres-data-*.dump
    while [ $# -gt "${KEEP:-14}" ]; do rm -- "$1"; shift; done
    ;;
  restore)
    file=${BACKUP:-}
    if [ -z "$file" ]; then for file in /backup/llm-postgres-data-*.dump; do :; done; fi
    [ -s "$file" ] || { echo "error: there is no dump $file" >&2; exit 1; }
    say "putting back $file"
    new=${database}_new
    drop() { dropdb --if-exists --force --maintenance-db=template1 "$1"; }
    drop "$new"
    createdb --maintenance-db=template1 --template=template0 "$new"
    pg_restore --dbname="$new" --exit-on-error --no-owner "$file" || {
      drop "$new"
      echo "error: $file cannot be put back; the database $database is as it was" >&2
      exit 1
    }
    drop "$database"
    echo 'ALTER DATABASE :"new" RENAME TO :"database"' |
      psql --no-psqlrc --quiet --dbname=template1 --set=ON_ERROR_STOP=1 --set=new="$new" --set=database="$database"
    ;;
  *) echo "usage: postgres.sh save|restore" >&2; exit 2 ;;
esac
