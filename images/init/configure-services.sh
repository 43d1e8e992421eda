#!/bin/bash
# Tells the services about each other: LiteLLM learns the models and the token, Open WebUI and the retrieval service get
# their settings and tokens as files, each in a folder of its own below CONFIG_DIR.
#
# LiteLLM's models are told apart by ids that begin with `obelisk-`, so a second run finds them; `obelisk_revision` in
# their model_info says what they were made from, so a changed setting replaces them. Models of other ids are not touched.
# shellcheck source=common.sh
. "${OBELISK_LIB:-/usr/local/lib/obelisk}/common.sh"
begin services "$EXIT_SERVICES"
[ "$#" -eq 0 ] || { echo "usage: ${0##*/}" >&2; exit "$EXIT_USAGE"; }
settings

readonly tokens=$TOKENS_DIR/api_tokens.env previous=$TOKENS_DIR/api_tokens.previous
[ -r "$tokens" ] || fail "$tokens cannot be read: run generate-tokens.sh first"
api_token=$(token LITELLM_API_TOKEN) || fail "$tokens lacks LITELLM_API_TOKEN: run generate-tokens.sh"
rag_token=$(token RAG_API_TOKEN) || fail "$tokens lacks RAG_API_TOKEN: run generate-tokens.sh"
webui_key=$(token WEBUI_SECRET_KEY) || fail "$tokens lacks WEBUI_SECRET_KEY: run generate-tokens.sh"
SECRETS+=("$api_token" "$rag_token" "$webui_key")

# --- LiteLLM ---------------------------------------------------------------------------------------------------------

reach_litellm() {
  request GET "$LITELLM_API_URL/health/readiness" ''
  outcome || return $?
  # Without its database LiteLLM answers, but knows neither keys nor stored models.
  if [ "$(jq -r '.db // empty' <<<"$BODY" 2>/dev/null)" != connected ]; then
    REASON="LiteLLM is not connected to its database"
    return 75
  fi
}

# litellm_call METHOD PATH [BODY]
litellm_call() {
  request "$1" "$LITELLM_API_URL$2" "$LITELLM_MASTER_KEY" "${3:-}"
  outcome
}

# The models as LiteLLM shall have them. Secrets come by the environment, which other users cannot read.
desired_models() {
  RAG_TOKEN=$rag_token OPENAI_KEY=$OPENAI_API_KEY jq -cn \
    --arg ollama "$OLLAMA_API_BASE" --arg rag "$RAG_API_URL/v1" --arg embedding "$EMBEDDING_MODEL" \
    --argjson openai "$USE_OPENAI" --arg openai_completion "$OPENAI_COMPLETION_MODEL" \
    --arg openai_embedding "$OPENAI_EMBEDDING_MODEL" --arg organization "$OPENAI_ORG_ID" '
    def model($mode; $params): {
      model_name: .,
      litellm_params: $params,
      model_info: {id: ("obelisk-" + .), mode: $mode}
    };
    def openai: {model: ("openai/" + .), api_key: env.OPENAI_KEY, drop_params: true}
      + if $organization == "" then {} else {$organization} end;
    [ ($ARGS.positional[] | if . == $embedding
        then model("embedding"; {model: ("ollama/" + .), api_base: $ollama, drop_params: true})
        else model("chat"; {model: ("ollama_chat/" + .), api_base: $ollama, drop_params: true}) end),
      ("obelisk-rag" | model("chat"; {model: "openai/obelisk-rag", api_base: $rag, api_key: env.RAG_TOKEN})),
      (if $openai then
        ($openai_completion | model("chat"; openai)),
        ($openai_embedding | model("embedding"; openai))
      else empty end)
    ] | unique_by(.model_info.id)' --args -- "${MODELS[@]}"
}

# list_known: sets `known` to LiteLLM's models of ours, as {id: revision}.
list_known() {
  litellm_call GET /model/info || return $?
  known=$(jq -ce '[.data[]? | .model_info // {} | select((.id // "") | startswith("obelisk-"))
    | {key: .id, value: (.obelisk_revision // "")}] | from_entries' <<<"$BODY" 2>/dev/null) || {
    REASON="GET /model/info did not answer with a list of models"
    return 1
  }
}

# store_model MODEL: MODEL as JSON with its revision. A changed one is replaced: LiteLLM's /model/update keeps parameters
# that were taken away, and not every version stores the new model_info.
store_model() {
  local id have want
  list_known || return $?
  id=$(jq -r .model_info.id <<<"$1")
  have=$(jq -r --arg id "$id" '.[$id] // "none"' <<<"$known")
  want=$(jq -r .model_info.obelisk_revision <<<"$1")
  [ "$have" != "$want" ] || return 0
  if [ "$have" != none ]; then
    litellm_call POST /model/delete "$(jq -cn --arg id "$id" '{$id}')" || return $?
    done_what=updated
  fi
  litellm_call POST /model/new "$1" || return $?
  done_what=${done_what:-added}
}

remove_model() {
  list_known || return $?
  jq -e --arg id "$1" 'has($id)' <<<"$known" >/dev/null || return 0
  litellm_call POST /model/delete "$(jq -cn --arg id "$1" '{$id}')" || return $?
  done_what=removed
}

# reconcile_key: sets done_what. LiteLLM tells about a key to whoever holds it, so the key stands in no address.
reconcile_key() {
  local wanted=$1 id have
  request GET "$LITELLM_API_URL/key/info" "$api_token"
  case $STATUS in
    200)
      have=$(jq -ce '.info | {key_alias, tpm_limit, rpm_limit, models: (.models // [] | sort)}' <<<"$BODY" 2>/dev/null) || {
        REASON="GET /key/info did not answer with a key"
        return 1
      }
      if [ "$have" = "$(jq -c '{key_alias, tpm_limit, rpm_limit, models: (.models | sort)}' <<<"$wanted")" ]; then
        return 0
      fi
      litellm_call POST /key/update "$(API_TOKEN=$api_token jq -c '. + {key: env.API_TOKEN}' <<<"$wanted")" || return $?
      done_what=updated
      ;;
    400 | 401 | 403 | 404)
      litellm_call POST /key/generate "$(API_TOKEN=$api_token jq -c '. + {key: env.API_TOKEN}' <<<"$wanted")" || return $?
      done_what=registered
      ;;
    *) outcome ;;
  esac
}

forget_key() {
  request GET "$LITELLM_API_URL/key/info" "$1"
  case $STATUS in
    200) ;;
    400 | 401 | 403 | 404) return 0 ;;
    *)
      outcome || return $?
      return 0
      ;;
  esac
  litellm_call POST /key/delete "$(OLD_TOKEN=$1 jq -cn '{keys: [env.OLD_TOKEN]}')" || return $?
  done_what=deleted
}

log info "waiting for LiteLLM" "url=$LITELLM_API_URL"
persist "reaching LiteLLM at $LITELLM_API_URL" reach_litellm

desired=$(desired_models)
ids=()
while IFS= read -r model; do
  revision=$(sha256sum <<<"$model")
  model=$(jq -c --arg revision "${revision:0:32}" '.model_info.obelisk_revision = $revision' <<<"$model")
  name=$(jq -r .model_name <<<"$model")
  ids+=("$(jq -r .model_info.id <<<"$model")")
  done_what=''
  persist "storing model $name in LiteLLM" store_model "$model"
  if [ -n "$done_what" ]; then changed "model $name $done_what in LiteLLM"; else log info "model unchanged" "model=$name"; fi
done < <(jq -c '.[]' <<<"$desired")

persist "listing LiteLLM's models" list_known
while IFS= read -r id; do
  done_what=''
  persist "removing model $id from LiteLLM" remove_model "$id"
  [ -z "$done_what" ] || changed "model $id removed from LiteLLM"
done < <(jq -r 'keys[] | select(IN($ARGS.positional[]) | not)' --args -- "${ids[@]}" <<<"$known")

# An alias belongs to one key in LiteLLM, and while tokens are rotated there are two keys.
digest=$(printf %s "$api_token" | sha256sum)
names=$(jq -c '[.[].model_name] | unique' <<<"$desired")
key=$(jq -cn --arg alias "obelisk-${digest:0:12}" --argjson models "$names" --argjson tpm "$((10#$TOKEN_TPM_LIMIT))" \
  --argjson rpm "$((10#$TOKEN_RPM_LIMIT))" '{key_alias: $alias, tpm_limit: $tpm, rpm_limit: $rpm, $models,
    metadata: {description: "made by the initialisation of Obelisk"}}')
done_what=''
persist "registering the token with LiteLLM" reconcile_key "$key"
if [ -n "$done_what" ]; then changed "token $done_what in LiteLLM"; else log info "token unchanged"; fi

if [ -e "$previous" ]; then
  mapfile -t lines < <(replaced "$previous")
  for line in "${lines[@]}"; do
    old=${line#*=}
    # A job that makes new tokens at this moment, or was killed at it, has noted the one that it was about to replace.
    [ "$old" != "$api_token" ] || continue
    SECRETS+=("$old")
    done_what=''
    persist "deleting the previous token from LiteLLM" forget_key "$old"
    [ -z "$done_what" ] || changed "previous token deleted from LiteLLM"
    rest=$(replaced "$previous" "$line")
    if [ -n "$rest" ]; then
      install_file 0440 "$previous" "$rest" || [ "$?" -eq "$SAME" ]
    else
      rm -f -- "$previous"
    fi
  done
fi

# --- settings of the others ------------------------------------------------------------------------------------------

# write MODE PATH TEXT
write() {
  local status=0
  install_file "$1" "$CONFIG_DIR/$2" "$3" || status=$?
  case $status in
    0) changed "wrote $2" ;;
    "$SAME") log info "file unchanged" "file=$2" ;;
    *) fail "cannot write $2" ;;
  esac
}

# One key for each address of OPENAI_API_BASE_URLS, in the same order: LiteLLM, then the retrieval service.
write 0440 openwebui/openwebui.env "# Settings of Open WebUI, which its start script reads (\`set -a; . FILE\`).
OLLAMA_BASE_URLS=$(quoted "$OLLAMA_API_BASE")
OPENAI_API_BASE_URLS=$(quoted "$LITELLM_API_URL/v1;$RAG_API_URL/v1")
OPENAI_API_KEYS=$(quoted "$api_token;$rag_token")
WEBUI_SECRET_KEY=$(quoted "$webui_key")
RAG_EMBEDDING_ENGINE=ollama
RAG_EMBEDDING_MODEL=$(quoted "$EMBEDDING_MODEL")
RAG_OLLAMA_BASE_URL=$(quoted "$OLLAMA_API_BASE")
VECTOR_DB=milvus
MILVUS_URI=$(quoted "$MILVUS_URI")"

# The key that it asks LiteLLM with, and the token that it is asked with.
write 0440 rag/litellm_api_token "$api_token"
write 0440 rag/rag_api_token "$rag_token"
write 0444 rag/rag.yaml "# Settings of the retrieval service, for OBELISK_CONFIG; its tokens lie beside this file.
rag:
  embedding_provider: $([ "$USE_OPENAI" = true ] && echo litellm || echo ollama)
  completion_provider: litellm
  embedding_model: $(jq -cn --arg it "$([ "$USE_OPENAI" = true ] && echo "$OPENAI_EMBEDDING_MODEL" || echo "$EMBEDDING_MODEL")" '$it')
  ollama_model: $(jq -cn --arg it "$([ "$USE_OPENAI" = true ] && echo "$OPENAI_COMPLETION_MODEL" || echo "$OLLAMA_MODEL")" '$it')
  ollama_url: $(jq -cn --arg it "$OLLAMA_API_BASE" '$it')
  litellm_api_url: $(jq -cn --arg it "$LITELLM_API_URL" '$it')
  milvus_uri: $(jq -cn --arg it "$MILVUS_URI" '$it')"
