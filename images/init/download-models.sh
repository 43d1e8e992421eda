#!/bin/bash
# Has Ollama pull the models that it lacks. A pull may take hours as long as it gets on: only standing still is limited
# (STALL_TIMEOUT), and all of it (PULL_TIMEOUT). Ollama resumes where a pull broke off.
# shellcheck source=common.sh
. "${OBELISK_LIB:-/usr/local/lib/obelisk}/common.sh"
begin models "$EXIT_MODELS"
[ "$#" -eq 0 ] || { echo "usage: ${0##*/}" >&2; exit "$EXIT_USAGE"; }
settings

reach_ollama() {
  request GET "$OLLAMA_API_URL/api/version" ''
  outcome
}

list_models() {
  request GET "$OLLAMA_API_URL/api/tags" ''
  outcome || return $?
  # Names carry a tag; one without means `latest`.
  present=$(jq -r '.models[]? | .name // .model' <<<"$BODY" 2>/dev/null) || {
    REASON="GET /api/tags did not answer with a list of models"
    return 1
  }
}

has() {
  local model=$1
  [[ ${model##*/} == *:* ]] || model+=:latest
  [[ $'\n'$present$'\n' == *$'\n'"$model"$'\n'* ]]
}

# pull MODEL: one attempt. 0 done, 1 hopeless, 75 try again.
pull() {
  local model=$1 line status total completed error best='' moved=$EPOCHSECONDS shown=$EPOCHSECONDS body left result done=false
  left=$((pull_deadline - EPOCHSECONDS))
  [ "$left" -gt 0 ] || left=1
  body=$(jq -cn --arg model "$model" '{$model, stream: true}')
  REASON='the connection ended before the pull did'
  # Silence and the same line again and again are both standing still. The pipe is closed then, and curl ends with it, or
  # by itself where it hears nothing.
  while :; do
    result=0
    IFS=$'\037' read -r -t "$((moved + STALL_TIMEOUT - EPOCHSECONDS + 1))" status total completed error || result=$?
    if [ "$result" -gt 128 ]; then
      REASON="no progress in $STALL_TIMEOUT s"
      break
    fi
    [ "$result" -eq 0 ] || break
    if [ -n "$error" ]; then
      REASON=$error
      break
    fi
    if [ "$status" = success ]; then
      done=true
      break
    fi
    line="$status $total $completed"
    if [ "$line" != "$best" ]; then
      best=$line moved=$EPOCHSECONDS
    elif [ "$((EPOCHSECONDS - moved))" -gt "$STALL_TIMEOUT" ]; then
      REASON="no progress in $STALL_TIMEOUT s"
      break
    fi
    if [ "$((EPOCHSECONDS - shown))" -ge 10 ]; then
      shown=$EPOCHSECONDS
      log info "pulling" "model=$model" "status=$status" "completed=$completed" "total=$total"
    fi
  done < <(
    trap - ERR
    curl --silent --show-error --no-buffer --connect-timeout 5 --max-time "$left" \
      --speed-limit 1 --speed-time "$STALL_TIMEOUT" --header 'Content-Type: application/json' \
      --data-binary "$body" -- "$OLLAMA_API_URL/api/pull" 2>&1 \
      | jq --unbuffered -Rr '. as $line | try (fromjson | [.status // "", .total // 0, .completed // 0, .error // ""])
          catch ["", 0, 0, $line] | map(tostring | gsub("[\u0000-\u001f]"; " ")) | join("\u001f")' || :
  )
  if $done; then return 0; fi
  case ${REASON,,} in
    *'file does not exist'* | *'not found'* | *'invalid model'*) return 1 ;;
    *) return 75 ;;
  esac
}

log info "waiting for Ollama" "url=$OLLAMA_API_URL"
persist "reaching Ollama at $OLLAMA_API_URL" reach_ollama
persist "listing Ollama's models" list_models

for model in "${MODELS[@]}"; do
  if has "$model"; then
    log info "model unchanged" "model=$model"
    continue
  fi
  log info "pulling" "model=$model"
  pull_deadline=$((EPOCHSECONDS + PULL_TIMEOUT))
  deadline "$PULL_TIMEOUT"
  while :; do
    result=0
    pull "$model" || result=$?
    case $result in
      0) break ;;
      75) log warning "pull interrupted, trying again" "model=$model" "reason=$REASON" ;;
      *) fail "Ollama cannot pull $model" "reason=$REASON" ;;
    esac
    pause || fail "$model was not pulled in $PULL_TIMEOUT s" "reason=$REASON"
  done
  persist "listing Ollama's models" list_models
  has "$model" || fail "Ollama said that it pulled $model but does not list it"
  changed "model $model pulled"
done
