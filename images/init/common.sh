# What the initialisation scripts share: settings and their checks, log lines, HTTP with deadlines, atomic files.
# Sourced, not run. Secrets stand in variables, are handed to programs through files or the environment, and appear
# neither in a log line nor in an argument list.
# shellcheck shell=bash

set -Eeuo pipefail
# Files are for the owner, and secrets for the group that TOKENS_GID names.
umask 0027

# Exit statuses, one a phase. 2 is a wrong command line.
readonly EXIT_USAGE=2 EXIT_SETTINGS=10 EXIT_TOKENS=20 EXIT_MODELS=30 EXIT_SERVICES=40 EXIT_VERIFY=50
export EXIT_USAGE EXIT_SETTINGS EXIT_TOKENS EXIT_MODELS EXIT_SERVICES EXIT_VERIFY

# begin PHASE STATUS: names the phase in log lines, and the status with which anything unforeseen ends it.
begin() {
  PHASE=$1 PHASE_STATUS=$2
  trap 'unforeseen "$LINENO"' ERR
  trap 'log warning "stopped by a signal"; exit 143' TERM INT
}

unforeseen() {
  log error "a command failed unexpectedly" "script=${0##*/}" "line=$1"
  exit "$PHASE_STATUS"
}

# --- log -------------------------------------------------------------------------------------------------------------

declare -Ar LEVELS=([debug]=0 [info]=1 [warning]=2 [error]=3)

# log LEVEL MESSAGE [NAME=VALUE...]: one line on stderr.
log() {
  local level=$1 message=$2 pair now
  shift 2
  [ "${LEVELS[$level]}" -ge "${LEVELS[${LOG_LEVEL:-info}]:-1}" ] || return 0
  TZ=UTC0 printf -v now '%(%Y-%m-%dT%H:%M:%SZ)T' -1
  if [ "${LOG_FORMAT:-text}" = json ]; then
    jq -cn --arg time "$now" --arg level "$level" --arg phase "${PHASE:-init}" \
      --arg message "$message" '{$time, $level, $phase, $message} + ([$ARGS.positional[]
        | capture("^(?<key>[^=]*)=(?<value>.*)$"; "m")] | from_entries)' --args -- "$@" >&2
  else
    for pair in "$@"; do message+=" $pair"; done
    # A server's words may hold line ends; a log line may not.
    printf '%s %-7s %s: %s\n' "$now" "$level" "${PHASE:-init}" "${message//[$'\001'-$'\037']/ }" >&2
  fi
}

# fail MESSAGE [NAME=VALUE...]: ends the phase.
fail() {
  log error "$@"
  exit "$PHASE_STATUS"
}

# changed WHAT: one line on stdout for everything that a script altered; nothing at all means that all was as it should be.
changed() {
  printf '%s\n' "$1"
  log info "$1"
}

# --- settings --------------------------------------------------------------------------------------------------------

PROBLEMS=()

problem() {
  PROBLEMS+=("$1")
}

# What `request` must not repeat.
SECRETS=()

# secret NAME: takes NAME from the file that NAME_FILE names, if it does.
secret() {
  local name=$1 file_name=$1_FILE
  local file=${!file_name:-} value=${!name:-}
  if [ -n "$file" ]; then
    if [ -n "$value" ]; then
      problem "$name and $file_name are both set: unset one"
    elif [ ! -r "$file" ] || [ ! -f "$file" ]; then
      problem "$file_name names $file, which cannot be read by user $(id -u)"
    else
      # An empty file is what an unset secret looks like in a deployment; who needs the secret says so.
      value=$(<"$file")
    fi
  fi
  # Programs are handed it where they need it, and do not inherit it.
  declare -g +x "$name"
  printf -v "$name" %s "$value"
  SECRETS+=("$value")
}

check_url() {
  local variable=$1 value=${!1}
  # No more than an address of a service needs: others read it out of files, some of them by a shell.
  local LC_ALL=C name='[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?'
  local pattern="^https?://(\[[0-9A-Fa-f:.]+\]|$name)(:([0-9]{1,5}))?(/[A-Za-z0-9._~%/+-]*)?\$"
  if [[ $value == *@* ]]; then
    problem "$variable must hold no user and password: give them to the service in another way"
  elif ! [[ $value =~ $pattern ]]; then
    problem "$variable must be a URL such as http://host:port, not \`$value\`"
  elif [ -n "${BASH_REMATCH[4]}" ] && { [ "$((10#${BASH_REMATCH[4]}))" -lt 1 ] || [ "$((10#${BASH_REMATCH[4]}))" -gt 65535 ]; }; then
    problem "$variable has port ${BASH_REMATCH[4]}: it must lie between 1 and 65535"
  fi
  printf -v "$variable" %s "${value%/}"
}

check_number() {
  local name=$1 low=$2 high=$3 value=${!1}
  if ! [[ $value =~ ^[0-9]{1,9}$ ]] || [ "$((10#$value))" -lt "$low" ] || [ "$((10#$value))" -gt "$high" ]; then
    problem "$name must be a whole number from $low to $high, not \`$value\`"
  fi
}

check_choice() {
  local name=$1 value=${!1} word
  shift
  for word in "$@"; do [ "$value" != "$word" ] || return 0; done
  problem "$name must be one of $*, not \`$value\`"
}

check_folder() {
  if [ ! -d "$2" ]; then
    problem "$1 names $2, which is not a folder"
  elif [ ! -w "$2" ]; then
    problem "$1 names $2, where user $(id -u) may not write"
  fi
}

check_model() {
  local what=$1 value=$2
  [[ $value =~ ^[A-Za-z0-9][A-Za-z0-9._/:-]{0,200}$ ]] || problem "$what must be the name of a model, not \`$value\`"
}

# guessable TEXT: fewer than 8 different characters, counting up or down, along a keyboard, or the word password.
guessable() {
  local text=$1 at code last='' seen=' ' steps=0 different=0 lower=${1,,}
  local rows='qwertyuiop asdfghjkl zxcvbnm qwertzuiop yxcvbnm poiuytrewq lkjhgfdsa mnbvcxz poiuztrewq mnbvcxy'
  for ((at = 0; at < ${#text}; at++)); do
    printf -v code %d "'${text:at:1}"
    if [[ $seen != *" $code "* ]]; then seen+="$code " different=$((different + 1)); fi
    if [ -n "$last" ]; then
      if [[ $rows == *"${lower:at-1:2}"* ]] || { [ "$((code - last))" -ge -1 ] && [ "$((code - last))" -le 1 ]; }; then
        steps=$((steps + 1))
      fi
    fi
    last=$code
  done
  [ "$different" -lt 8 ] || [ "$((steps * 2))" -gt "${#text}" ] || [[ $lower == *password* ]]
}

# placeholder TEXT: what stands where a key is to be written.
placeholder() {
  local lower=${1,,}
  [[ $lower == *goes-here* || ${lower//[-_]/} == *changeme* ]]
}

# check_key NAME: keys that LiteLLM takes begin with sk-; in production those that are well known, short or can be guessed
# are refused, as `imgbuild env check` refuses them.
check_key() {
  local LC_ALL=C name=$1 value=${!1}
  if [[ $value != sk-* ]]; then
    problem "$name must begin with sk-"
  elif [[ $value =~ [^[:graph:]]|[\"\\] ]]; then
    problem "$name must hold letters, digits and signs of ASCII alone: no spaces, quotes, backslashes, umlauts or broken bytes"
  elif [ "$ENVIRONMENT" = prod ] && { [ "${#value}" -lt 32 ] || placeholder "$value" || guessable "${value#sk-}"; }; then
    problem "$name is a default, has fewer than 32 characters or can be guessed, which production does not allow"
  fi
}

# settings: reads and checks every variable of every script, and reports all that is wrong together.
settings() {
  : "${ENVIRONMENT:=dev}" "${LOG_LEVEL:=info}" "${LOG_FORMAT:=text}"
  : "${OLLAMA_API_URL:=http://ollama:11434}" "${LITELLM_API_URL:=http://litellm:4000}"
  : "${OLLAMA_API_BASE:=$OLLAMA_API_URL}" "${RAG_API_URL:=http://rag:8000}" "${MILVUS_URI:=http://milvus:19530}"
  : "${OLLAMA_MODEL:=llama3}" "${EMBEDDING_MODEL:=mxbai-embed-large}" "${EXTRA_MODELS:=}"
  : "${USE_OPENAI:=false}" "${OPENAI_COMPLETION_MODEL:=gpt-4o}" "${OPENAI_EMBEDDING_MODEL:=text-embedding-3-large}"
  : "${TOKENS_DIR:=/app/tokens}" "${CONFIG_DIR:=/app/config}" "${TOKENS_GID:=}"
  : "${TOKEN_TPM_LIMIT:=100000}" "${TOKEN_RPM_LIMIT:=5000}"
  : "${WAIT_TIMEOUT:=600}" "${INIT_DEADLINE_SECONDS:=$WAIT_TIMEOUT}" "${PULL_TIMEOUT:=7200}" "${HTTP_TIMEOUT:=30}"
  : "${STALL_TIMEOUT:=$INIT_DEADLINE_SECONDS}" "${OPENAI_ORG_ID:=}"
  LOG_LEVEL=${LOG_LEVEL,,} USE_OPENAI=${USE_OPENAI,,}

  check_choice LOG_LEVEL debug info warning error
  check_choice LOG_FORMAT text json
  check_choice ENVIRONMENT dev test prod
  check_choice USE_OPENAI true false
  # Said twice, one mistake would be reported twice.
  if [ "$OLLAMA_API_BASE" = "$OLLAMA_API_URL" ]; then OLLAMA_API_BASE=''; else check_url OLLAMA_API_BASE; fi
  check_url OLLAMA_API_URL
  : "${OLLAMA_API_BASE:=$OLLAMA_API_URL}"
  check_url LITELLM_API_URL
  check_url RAG_API_URL
  check_url MILVUS_URI
  # Said twice, one mistake would be reported twice.
  check_number WAIT_TIMEOUT 1 86400
  [ "$INIT_DEADLINE_SECONDS" = "$WAIT_TIMEOUT" ] || check_number INIT_DEADLINE_SECONDS 1 86400
  check_number PULL_TIMEOUT 1 604800
  [ "$STALL_TIMEOUT" = "$INIT_DEADLINE_SECONDS" ] || check_number STALL_TIMEOUT 1 86400
  check_number HTTP_TIMEOUT 1 3600
  check_number TOKEN_TPM_LIMIT 1 999999999
  check_number TOKEN_RPM_LIMIT 1 999999999
  [ -z "$TOKENS_GID" ] || check_number TOKENS_GID 0 999999999
  check_model OLLAMA_MODEL "$OLLAMA_MODEL"
  check_model EMBEDDING_MODEL "$EMBEDDING_MODEL"
  local model
  for model in $EXTRA_MODELS; do check_model EXTRA_MODELS "$model"; done

  secret LITELLM_MASTER_KEY
  if [ -n "$LITELLM_MASTER_KEY" ]; then
    check_key LITELLM_MASTER_KEY
  else
    problem "LITELLM_MASTER_KEY or LITELLM_MASTER_KEY_FILE must be set to a key"
  fi
  secret OPENAI_API_KEY
  if [ "$USE_OPENAI" = true ]; then
    if [ -n "$OPENAI_API_KEY" ]; then
      check_key OPENAI_API_KEY
    else
      problem "OPENAI_API_KEY or OPENAI_API_KEY_FILE must be set to a key because USE_OPENAI is true"
    fi
    [[ $OPENAI_ORG_ID =~ ^[A-Za-z0-9_-]*$ ]] || problem "OPENAI_ORG_ID must hold letters, digits, - and _ only"
    check_model OPENAI_COMPLETION_MODEL "$OPENAI_COMPLETION_MODEL"
    check_model OPENAI_EMBEDDING_MODEL "$OPENAI_EMBEDDING_MODEL"
  fi
  check_folder TOKENS_DIR "$TOKENS_DIR"
  # A folder in it for each reader, which may be a volume of its own.
  if [ -d "$CONFIG_DIR/rag" ] && [ -d "$CONFIG_DIR/openwebui" ]; then
    check_folder CONFIG_DIR "$CONFIG_DIR/rag"
    check_folder CONFIG_DIR "$CONFIG_DIR/openwebui"
  else
    check_folder CONFIG_DIR "$CONFIG_DIR"
  fi

  if [ "${#PROBLEMS[@]}" -gt 0 ]; then
    # What is wrong with the log's own settings must be readable all the same.
    case $LOG_FORMAT in text | json) ;; *) LOG_FORMAT=text ;; esac
    LOG_LEVEL=info
    local each
    for each in "${PROBLEMS[@]}"; do log error "$each"; done
    log error "${#PROBLEMS[@]} settings are wrong"
    exit "$EXIT_SETTINGS"
  fi
  MODELS=("$EMBEDDING_MODEL" "$OLLAMA_MODEL")
  for model in $EXTRA_MODELS; do
    case " ${MODELS[*]} " in *" $model "*) ;; *) MODELS+=("$model") ;; esac
  done
}

# --- time ------------------------------------------------------------------------------------------------------------

# deadline SECONDS: starts the time for `pause`.
deadline() {
  DEADLINE=$((EPOCHSECONDS + $1)) PAUSE_MS=500
}

# pause: waits longer each time, half of it by chance so that several jobs do not knock together; fails when the time is up.
pause() {
  local left=$((DEADLINE - EPOCHSECONDS)) wait=$((PAUSE_MS / 2 + RANDOM % (PAUSE_MS / 2 + 1)))
  [ "$left" -gt 0 ] || return 1
  [ "$wait" -le "$((left * 1000))" ] || wait=$((left * 1000))
  sleep "$((wait / 1000)).$(printf %03d "$((wait % 1000))")"
  PAUSE_MS=$((PAUSE_MS * 2 < 15000 ? PAUSE_MS * 2 : 15000))
}

# --- HTTP ------------------------------------------------------------------------------------------------------------

# curl_config KEY BODY: what may be secret, as options for `curl --config -`.
curl_config() {
  local body=$2
  [ -z "$1" ] || printf 'header = "Authorization: Bearer %s"\n' "$1"
  if [ -n "$body" ]; then
    body=${body//\\/\\\\}
    body=${body//\"/\\\"}
    printf 'header = "Content-Type: application/json"\ndata-binary = "%s"\n' "$body"
  fi
}

# without_secrets TEXT
without_secrets() {
  local text=$1 each
  for each in "${SECRETS[@]}"; do
    [ -z "$each" ] || text=${text//"$each"/'***'}
  done
  printf %s "$text"
}

# request METHOD URL KEY [BODY]: sets STATUS (000 if nothing answered), BODY, and REASON for a person. BODY is one line.
request() {
  local method=$1 url=$2 key=$3 body=${4:-} reply said
  local options=(--silent --show-error --connect-timeout 5 --max-time "$HTTP_TIMEOUT" --request "$method")
  options+=(--header 'Accept: application/json' --write-out '\n%{http_code}' --config -)
  if reply=$(curl_config "$key" "$body" | curl "${options[@]}" -- "$url" 2>&1); then
    STATUS=${reply##*$'\n'} BODY=${reply%$'\n'*}
    # FastAPI's refusals hold what was sent as `input`; other servers quote it in their words.
    said=$(jq -r '(.error? // .detail? // .) | walk(if type == "object" then del(.input) else . end)
      | if type == "object" then (.message? // tojson) else tostring end' <<<"$BODY" 2>/dev/null) || said=$BODY
    said=$(without_secrets "$said")
    REASON="status $STATUS: ${said:0:200}"
  else
    STATUS=000 BODY='' REASON=${reply//$'\n'/ }
    # Before curl's own message stands what --write-out printed.
    REASON=${REASON#*curl: }
    REASON=$(without_secrets "${REASON% 000}")
  fi
}

# again: whether the last request may succeed later.
again() {
  case $STATUS in 000 | 408 | 425 | 429 | 5??) return 0 ;; *) return 1 ;; esac
}

# persist WHAT FUNCTION [ARGUMENT...]: calls a function until it is done (0) or cannot be (1); 75 means try again. A
# function reads the present state first, so that a request whose answer was lost is not made twice.
persist() {
  local what=$1 status
  shift
  deadline "$INIT_DEADLINE_SECONDS"
  while :; do
    status=0
    "$@" || status=$?
    case $status in
      0) return 0 ;;
      75) log debug "$what: $REASON" ;;
      *) fail "$what failed" "reason=$REASON" ;;
    esac
    pause || fail "$what did not succeed in $INIT_DEADLINE_SECONDS s" "reason=$REASON"
  done
}

# outcome: a function's status from that of its request.
outcome() {
  case $STATUS in 2??) return 0 ;; esac
  if again; then return 75; fi
  return 1
}

# --- files -----------------------------------------------------------------------------------------------------------

# The status of `install_file` for a file that was the same already.
readonly SAME=3

# install_file MODE PATH TEXT: puts a file in place as a whole: 0 done, SAME nothing to do. All else ends the phase here:
# the callers look at the status, and where they do bash does not stop at a step that fails.
install_file() {
  local mode=$1 path=$2 text=$3 new
  if [ -f "$path" ] && [ "$(stat -c %a "$path")" = "${mode#0}" ] && [ "$(<"$path")" = "$text" ]; then
    return "$SAME"
  fi
  { mkdir -p -- "${path%/*}" && new=$(mktemp -- "${path%/*}/.new.XXXXXX"); } || fail "cannot write $path"
  { printf '%s\n' "$text" >"$new" && seal "$mode" "$new" && mv -fT -- "$new" "$path"; } || {
    rm -f -- "$new"
    fail "cannot write $path"
  }
}

# seal MODE FILE: its group and permissions, and its bytes on the disk.
seal() {
  { [ -z "$TOKENS_GID" ] || chgrp -- "$TOKENS_GID" "$2"; } && chmod -- "$1" "$2" && sync -- "$2"
}

# token NAME [FILE]: a value of the tokens file.
token() {
  local line
  while IFS= read -r line || [ -n "$line" ]; do
    if [[ $line == "$1="* ]]; then
      printf %s "${line#*=}"
      return 0
    fi
  done <"${2:-$TOKENS_DIR/api_tokens.env}"
  return 1
}

# quoted TEXT: a word that every shell takes as it is.
quoted() {
  printf "'%s'" "${1//\'/\'\\\'\'}"
}

# replaced FILE [BUT]: the lines of FILE that hold a token which LiteLLM shall forget, but for one.
replaced() {
  local line
  [ -f "$1" ] || return 0
  while IFS= read -r line || [ -n "$line" ]; do
    if [[ $line == LITELLM_API_TOKEN=?* ]] && [ "$line" != "${2:-}" ]; then printf '%s\n' "$line"; fi
  done <"$1"
}
