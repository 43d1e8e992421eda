#!/bin/bash
# Prepares the services around Obelisk: checks the settings, then makes tokens, has models pulled, configures LiteLLM,
# and asks each service what an application would ask it. Runs to its end or says which phase failed and why.
#
#   init-sequence.sh [--rotate]   everything, once no other job is at work; --rotate makes new tokens
#   init-sequence.sh --check      checks the settings alone
#   init-sequence.sh --wait       waits until a job of this version has completed: for pods, which know no order
#   init-sequence.sh --alive      for health checks
#
# stdout: a line for each change, or `unchanged`. stderr: the log (LOG_FORMAT=json for machines).
# Exit status: 0 done, 2 wrong command line, 10 settings, 20 tokens, 30 models, 40 services, 50 verification, 143 stopped.
# shellcheck source=common.sh
. "${OBELISK_LIB:-/usr/local/lib/obelisk}/common.sh"
begin init 1

usage() {
  echo "usage: ${0##*/} [--rotate | --check | --wait | --alive]" >&2
  exit "$EXIT_USAGE"
}

bin=$(dirname -- "$0")

# version: what these scripts are; another version may make other tokens or register other models.
version() {
  local sum
  sum=$(cat -- "${OBELISK_LIB:-/usr/local/lib/obelisk}/common.sh" "$bin"/{init-sequence,generate-tokens,download-models,configure-services}.sh | sha256sum)
  printf '%s' "${sum%% *}"
}

# wait_for_job: needs the tokens' folder and no setting. A signal ends it, as a pod that is deleted wants.
wait_for_job() {
  local wanted file=${TOKENS_DIR:-/app/tokens}/complete said=0
  wanted=$(version)
  until [ -r "$file" ] && [ "$(<"$file")" = "$wanted" ]; do
    if [ "$((EPOCHSECONDS - said))" -ge 60 ]; then
      log info "waiting for the job to complete" "file=$file"
      said=$EPOCHSECONDS
    fi
    sleep 1
  done
}

rotate=()
[ "$#" -le 1 ] || usage
case ${1:-} in
  '') ;;
  --rotate) rotate=(--rotate) ;;
  --check) settings; log info "the settings are right"; exit 0 ;;
  --wait) wait_for_job; exit 0 ;;
  --alive) exit 0 ;;
  *) usage ;;
esac

# In a shell of its own: the scripts read the settings themselves, and from this one they inherit them as they are.
(settings) || exit $?
: "${TOKENS_DIR:=/app/tokens}" "${WAIT_TIMEOUT:=600}" "${PULL_TIMEOUT:=7200}"

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

# One job at a time: two that rotate at once would register a token that the other one has replaced already. The kernel
# lets go of the lock when the job ends, however it ends; so do the servers of shared volumes.
alone() {
  local lock=$TOKENS_DIR/.lock
  { exec {locked}>>"$lock"; } 2>/dev/null || fail "cannot open $lock"
  flock --nonblock "$locked" && return
  log info "another job is at work: waiting for its end" "lock=$lock"
  # In the background, because bash heeds a signal only between commands; the lock is that of the open file, so it stays.
  flock --timeout "$((WAIT_TIMEOUT + PULL_TIMEOUT))" "$locked" &
  child=$!
  wait "$child" || fail "another job is still at work after $((WAIT_TIMEOUT + PULL_TIMEOUT)) s" "lock=$lock"
  child=''
}

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

alone
run generate-tokens.sh "${rotate[@]}"
run download-models.sh
run configure-services.sh

# --- verification ----------------------------------------------------------------------------------------------------

begin verify "$EXIT_VERIFY"
settings
api_token=$(token LITELLM_API_TOKEN) || fail "the tokens are gone"
SECRETS+=("$api_token")

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

# For --wait. It is what a completed job leaves, so it is no change by itself.
install_file 0440 "$TOKENS_DIR/complete" "$(version)" || [ "$?" -eq "$SAME" ]

if [ "${#changes[@]}" -eq 0 ]; then
  printf 'unchanged\n'
  log info "initialisation complete" result=unchanged
else
  log info "initialisation complete" result=changed "changes=${#changes[@]}"
fi
