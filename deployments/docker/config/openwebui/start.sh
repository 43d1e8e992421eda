#!/bin/bash
# Open WebUI reads its keys from variables; they are files here: export them and become the image's own start script.
set -euo pipefail

# token NAME: what init wrote into the tokens volume.
token() {
  local value
  value=$(cat "/app/tokens/$1" 2> /dev/null) || value=''
  [ -n "$value" ] || { echo "error: /app/tokens/$1 is missing or empty: has init completed?" >&2; exit 1; }
  printf %s "$value"
}

WEBUI_SECRET_KEY=$(token webui_secret_key)
litellm=$(token litellm_api_token)
rag=$(token rag_api_token)
# One key for each address of OPENAI_API_BASE_URLS, in the same order: LiteLLM, then the retrieval service.
OPENAI_API_KEYS="$litellm;$rag"
export WEBUI_SECRET_KEY OPENAI_API_KEYS

mkdir -p "$STATIC_DIR"
cd /app/backend
exec bash start.sh
