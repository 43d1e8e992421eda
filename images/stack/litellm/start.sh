#!/bin/sh
# Exports what Docker gives as files, and becomes the real proxy or the double in front of it.
#   start.sh proxy|double
set -eu

# secret FILE: the content without the trailing newline; an absent or empty file is empty.
secret() {
  if [ -r "/run/secrets/$1" ]; then cat "/run/secrets/$1"; fi
}

LITELLM_MASTER_KEY=$(secret litellm_master_key)
LITELLM_SALT_KEY=$(secret litellm_salt_key)
export LITELLM_MASTER_KEY LITELLM_SALT_KEY
[ -n "$LITELLM_MASTER_KEY" ] || { echo "error: /run/secrets/litellm_master_key is missing, empty or not readable" >&2; exit 1; }

case ${1:-} in
  proxy) exec /opt/venv/bin/litellm --config /etc/litellm/config.yaml --host 0.0.0.0 --port 4000 ;;
  double)
    DATABASE_PASSWORD=$(secret postgres_password)
    export DATABASE_PASSWORD
    exec /opt/venv/bin/python /app/double.py
    ;;
  *) echo "usage: ${0##*/} proxy|double" >&2; exit 2 ;;
esac
