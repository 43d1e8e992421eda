#!/bin/sh
# SeaweedFS with the S3 API on port 9000 and one identity: that of the secrets.
set -eu
for name in minio_root_user minio_root_password; do
  if [ ! -s "/run/secrets/$name" ] || [ ! -r "/run/secrets/$name" ]; then
    echo "error: /run/secrets/$name is missing, empty or not readable for uid $(id -u)" >&2
    exit 1
  fi
done
umask 077
cat >/tmp/s3.json <<END
{"identities": [{"name": "root", "actions": ["Admin", "Read", "Write", "List", "Tagging"],
  "credentials": [{"accessKey": "$(cat /run/secrets/minio_root_user)", "secretKey": "$(cat /run/secrets/minio_root_password)"}]}]}
END
# It would write nothing where less than a hundredth of the disk is free.
exec /opt/venv/bin/weed -logtostderr server -dir=/minio_data -ip=127.0.0.1 -ip.bind=0.0.0.0 -s3 -s3.port=9000 \
  -s3.config=/tmp/s3.json -master.volumeSizeLimitMB=64 -volume.max=20 -volume.minFreeSpace=64MiB
