#!/bin/bash
# Open WebUI's settings are variables, and init wrote those that it knows best into a file, keys among them: take them and
# become the image's own start script.
set -euo pipefail

settings=/app/config/openwebui.env
if [ ! -s "$settings" ] || [ ! -r "$settings" ]; then
  echo "error: $settings is missing, empty or not readable for uid $(id -u): has init completed?" >&2
  exit 1
fi
set -a
# shellcheck source=/dev/null
. "$settings"
set +a
for name in WEBUI_SECRET_KEY OPENAI_API_KEYS; do
  [ -n "${!name:-}" ] || { echo "error: $settings lacks $name: run init again" >&2; exit 1; }
done
# Only a Milvus outside of this stack asks for a token.
if [ -s /run/secrets/milvus_token ]; then
  MILVUS_TOKEN=$(cat /run/secrets/milvus_token)
  export MILVUS_TOKEN
fi

# Where people open it by TLS, their browsers send its cookies by TLS alone (the one of the sign-in follows the session's), and
# pages of other origins are not answered.
if [[ ${WEBUI_URL:-} == https://* ]]; then
  host=${WEBUI_URL#https://}
  export WEBUI_SESSION_COOKIE_SECURE=true
  export CORS_ALLOW_ORIGIN=https://${host%%/*}
fi

mkdir -p "$STATIC_DIR"
cd /app/backend
exec bash start.sh
