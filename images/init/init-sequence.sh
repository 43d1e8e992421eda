#!/bin/bash
# Prepares the services around Obelisk: checks the settings, then makes tokens, has models pulled, configures LiteLLM,
# and asks each service what an application would ask it. Runs to its end or says which phase failed and why.
#
#   init-sequence.sh [--rotate]   everything; --rotate makes new tokens
#   init-sequence.sh --check      checks the settings alone
#   init-sequence.sh --alive      for health checks
#
# stdout: a line for each change, or `unchanged`. stderr: the log (LOG_FORMAT=json for machines).
# Exit status: 0 done, 2 wrong command line, 10 settings, 20 tokens, 30 models, 40 services, 50 verification, 143 stopped.
# shellcheck source=common.sh
. "${OBELISK_LIB:-/usr/local/lib/obelisk}/common.sh"
begin init 1

usage() {
  echo "usage: ${0##*/} [--rotate | --check | --alive]" >&2
  exit "$EXIT_USAGE"
}

rotate=()
[ "$#" -le 1 ] || usage
case ${1:-} in
  '') ;;
  --rotate) rotate=(--rotate) ;;
  --check) settings; log info "the settings are right"; exit 0 ;;
  --alive) exit 0 ;;
  *) usage ;;
esac

# In a shell of its own: the scripts read the settings themselves, and from this one they inherit them as they are.
(settings) || exit $?

bin=$(dirname -- "$0")
child=''
# A signal to the job is passed on: bash alone would wait for the script to end.
stop() {
  trap - ERR
  log warning "stopped by a signal"
  # The script may have ended by itself meanwhile.
  [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || :
  exit 143
}
trap stop TERM INT

changes=()
run() {
  local status=0 out
  out=$(mktemp /tmp/init.XXXXXX)
  "$bin/$1" "${@:2}" >"$out" &
  child=$!
  wait "$child" || status=$?
  child=''
  while IFS= read -r line; do
    printf '%s\n' "$line"
    changes+=("$line")
  done <"$out"
  rm -f -- "$out"
  [ "$status" -eq 0 ] || exit "$status"
}

run generate-tokens.sh "${rotate[@]}"
run download-models.sh
run configure-services.sh

# --- verification ----------------------------------------------------------------------------------------------------

begin verify "$EXIT_VERIFY"
settings
api_token=$(token LITELLM_API_TOKEN) || fail "the tokens are gone"

ask_models() {
  request GET "$LITELLM_API_URL/v1/models" "$api_token"
  outcome || return $?
  local missing
  missing=$(jq -r '[.data[]?.id] as $have | $ARGS.positional - $have | join(", ")' --args -- "$@" <<<"$BODY" 2>/dev/null) || {
    REASON="GET /v1/models did not answer with a list of models"
    return 1
  }
  # LiteLLM's workers learn of new models after a while.
  [ -z "$missing" ] || { REASON="the token does not see $missing"; return 75; }
}

wanted=("${MODELS[@]}" obelisk-rag)
[ "$USE_OPENAI" = false ] || wanted+=("$OPENAI_COMPLETION_MODEL" "$OPENAI_EMBEDDING_MODEL")
persist "seeing all models with the token" ask_models "${wanted[@]}"

if [ "${#changes[@]}" -eq 0 ]; then
  printf 'unchanged\n'
  log info "initialisation complete" result=unchanged
else
  log info "initialisation complete" result=changed "changes=${#changes[@]}"
fi
