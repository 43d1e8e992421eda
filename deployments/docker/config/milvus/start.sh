#!/bin/bash
# Milvus reads the credentials of its object store from variables; they are files here: export them and become Milvus.
set -euo pipefail
for pair in MINIO_ACCESS_KEY_ID=minio_root_user MINIO_SECRET_ACCESS_KEY=minio_root_password; do
  name=${pair%%=*} file=/run/secrets/${pair#*=}
  if [ ! -s "$file" ] || [ ! -r "$file" ]; then
    echo "error: $name: $file is missing, empty or not readable for uid $(id -u)" >&2
    exit 1
  fi
  value=$(<"$file")
  export "$name=$value"
done
# Milvus' image starts through tini, which compose's `init: true` replaces.
exec "$@"
