#!/bin/sh
# Milvus' objects: a mirror of every bucket beside the snapshot that etcd.sh took just before; or every bucket of a mirror
# put back, and no other.
#   buckets.sh save|restore
# KEEP backups stay; the newest is put back unless BACKUP names another.
set -eu
say() { echo "$(date -u +%H:%M:%S) $*" >&2; }
client() { mc --config-dir /tmp/mc "$@"; }
# By the standard input, where `ps` shows nothing of it; printf is the shell's own.
printf '%s\n%s\n' "$(cat /run/secrets/minio_root_user)" "$(cat /run/secrets/minio_root_password)" |
  client alias set store "${MINIO_URL:-http://minio:9000}" > /dev/null

# sums FOLDER: of every file below it.
sums() {
  for it in "$1"/* "$1"/.[!.]* "$1"/..?*; do
    if [ -d "$it" ]; then
      sums "$it" || return
    elif [ -f "$it" ]; then
      sha256sum -- "$it" || return
    fi
  done
}

# each COMMAND: COMMAND BUCKET for every bucket that there is; `mc ls` ends each line with `NAME/`.
each() {
  listed=$(client ls store)
  printf '%s\n' "$listed" | while read -r line; do
    name=${line##* }
    name=${name%/}
    [ -z "$name" ] || "$1" "$name"
  done
}
# An empty bucket is one, too, and a mirror has no folder for it.
note() { mkdir -p "/backup/vector-next/vector-minio-data/$1"; }
forget() { [ -d "$folder/vector-minio-data/$1" ] || client rb --force "store/$1"; }

case ${1:-} in
  save)
    [ -s /backup/vector-next/vector-etcd-data.db ] || { echo "error: there is no snapshot of etcd to complete" >&2; exit 1; }
    mkdir -p /backup/vector-next/vector-minio-data
    client mirror --overwrite --remove store /backup/vector-next/vector-minio-data
    each note
    # By these etcd.sh knows, before it destroys anything, that all of it is there.
    cd /backup/vector-next
    { sums vector-minio-data && sha256sum vector-etcd-data.db; } > SHA256SUMS.part
    mv SHA256SUMS.part SHA256SUMS
    cd /backup
    folder=/backup/vector-$(date -u +%Y%m%dT%H%M%SZ)
    mv /backup/vector-next "$folder"
    say "saved $folder"
    # The names sort by time. The jobs' images have a shell and coreutils for sure, and no findutils.
    set -- /backup/vector-2*
    while [ $# -gt "${KEEP:-7}" ]; do rm -r -- "$1"; shift; done
    ;;
  restore)
    folder=${BACKUP:-}
    if [ -z "$folder" ]; then for folder in /backup/vector-2*; do :; done; fi
    [ -d "$folder/vector-minio-data" ] || { echo "error: there are no buckets in $folder" >&2; exit 1; }
    say "putting back the buckets of $folder"
    for bucket in "$folder"/vector-minio-data/*/; do
      [ -d "$bucket" ] || continue
      name=$(basename "$bucket")
      client mb --ignore-existing "store/$name"
      client mirror --overwrite --remove "$bucket" "store/$name"
    done
    each forget
    ;;
  *) echo "usage: buckets.sh save|restore" >&2; exit 2 ;;
esac
