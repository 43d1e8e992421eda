#!/bin/sh
# Milvus' metadata: a snapshot of etcd, which buckets.sh then completes with the objects; or a new data folder of one.
#   etcd.sh save|restore
# /backup/vector-TIME holds both; the newest is put back unless BACKUP names another. To restore, Milvus and etcd must be
# down and their claims be mounted at /milvus and /etcd. Milvus' own is emptied: it logs what came after the metadata.
set -eu
say() { echo "$(date -u +%H:%M:%S) $*" >&2; }
endpoint=${ETCD_ENDPOINT:-http://etcd:2379}

case ${1:-} in
  save)
    # What a job left that was ended.
    rm -rf /backup/vector-next
    mkdir -p /backup/vector-next
    etcdctl --endpoints="$endpoint" snapshot save /backup/vector-next/vector-etcd-data.db
    ;;
  restore)
    folder=${BACKUP:-}
    if [ -z "$folder" ]; then for folder in /backup/vector-2*; do :; done; fi
    [ -s "$folder/vector-etcd-data.db" ] || { echo "error: there is no snapshot in $folder" >&2; exit 1; }
    say "checking every file of $folder"
    # Before anything is destroyed: the objects as well, which are put back after this.
    if [ ! -s "$folder/SHA256SUMS" ] || [ ! -d "$folder/vector-minio-data" ]; then
      echo "error: $folder is not complete, and nothing was changed: it has no SHA256SUMS or no buckets" >&2
      exit 1
    fi
    (cd "$folder" && sha256sum --quiet --check SHA256SUMS >&2) || {
      echo "error: $folder is damaged, and nothing was changed; BACKUP names another one" >&2
      exit 1
    }
    [ -d /milvus ] || { echo "error: Milvus' claim is not mounted at /milvus" >&2; exit 1; }
    if etcdctl --endpoints="$endpoint" --dial-timeout=2s --command-timeout=3s endpoint health > /dev/null 2>&1; then
      echo "error: etcd runs: scale it to 0 first" >&2
      exit 1
    fi
    say "a new data folder from $folder"
    rm -rf /etcd/data.new
    etcdutl snapshot restore "$folder/vector-etcd-data.db" --data-dir /etcd/data.new
    rm -rf /etcd/data
    mv /etcd/data.new /etcd/data
    say "emptying Milvus' claim"
    for it in /milvus/* /milvus/.[!.]* /milvus/..?*; do
      case $it in /milvus/lost+found) ;; *) rm -rf -- "$it" ;; esac
    done
    ;;
  *) echo "usage: etcd.sh save|restore" >&2; exit 2 ;;
esac
