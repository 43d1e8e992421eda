#!/bin/bash
# Open WebUI reads its keys from variables; they are files here: export them and become the image's own start script.
set -euo pipefail

WEBUI_SECRET_KEY=$(< /run/secrets/webui_secret_key)
[ -n "$WEBUI_SECRET_KEY" ] || { echo "error: /run/secrets/webui_secret_key is empty" >&2; exit 1; }
export WEBUI_SECRET_KEY

# What init wrote: LITELLM_API_TOKEN, the key that both LiteLLM and the RAG service accept.
token=$(sed -n 's/^LITELLM_API_TOKEN=//p' /app/tokens/api_tokens.env)
[ -n "$token" ] || { echo "error: no LITELLM_API_TOKEN in /app/tokens/api_tokens.env: has init completed?" >&2; exit 1; }
# One key for each address of OPENAI_API_BASE_URLS, in the same order.
export OPENAI_API_KEYS="$token;$token"

mkdir -p "$STATIC_DIR"
cd /app/backend
exec bash start.sh
