#!/bin/sh
# LiteLLM reads its secrets from variables, Docker and Kubernetes give them as files: export them and become the proxy.
# Nothing secret is on a command line or in the container's configuration.
set -eu

# secret FILE: the content without the trailing newline; an absent or empty file is empty.
secret() {
  if [ -r "/run/secrets/$1" ]; then cat "/run/secrets/$1"; fi
}

LITELLM_MASTER_KEY=$(secret litellm_master_key)
LITELLM_SALT_KEY=$(secret litellm_salt_key)
UI_PASSWORD=$(secret litellm_ui_password)
DATABASE_PASSWORD=$(secret postgres_password)
OPENAI_API_KEY=$(secret openai_api_key)
export LITELLM_MASTER_KEY LITELLM_SALT_KEY DATABASE_PASSWORD

for name in LITELLM_MASTER_KEY LITELLM_SALT_KEY DATABASE_PASSWORD; do
  eval "value=\$$name"
  if [ -z "$value" ]; then
    echo "error: $name is empty: its file below /run/secrets is missing, empty or not readable for uid $(id -u)" >&2
    exit 1
  fi
done
# LiteLLM would let everybody in who gives an empty password; without the variable the master key is the password.
if [ -n "$UI_PASSWORD" ]; then
  export UI_PASSWORD
elif [ -e /run/secrets/litellm_ui_password ]; then
  echo "error: UI_PASSWORD is empty: /run/secrets/litellm_ui_password is empty or not readable for uid $(id -u)" >&2
  exit 1
else
  unset UI_PASSWORD
fi
# An empty key would still count as "set": without a key the variable does not exist.
if [ -n "$OPENAI_API_KEY" ]; then export OPENAI_API_KEY; else unset OPENAI_API_KEY; fi
if [ -z "${OPENAI_ORGANIZATION:-}" ]; then unset OPENAI_ORGANIZATION; fi

exec litellm "$@"
