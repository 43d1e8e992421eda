#!/bin/bash
# Makes the tokens that Obelisk's services know each other by: once, all together, readable by owner and group alone.
#   generate-tokens.sh            keeps what is there
#   generate-tokens.sh --rotate   makes new ones; the old ones stay in api_tokens.previous until LiteLLM has forgotten them
#
# Writes api_tokens.env (NAME=value lines) to TOKENS_DIR, which is init's own: configure-services.sh gives each service those that
# it needs.
# shellcheck source=common.sh
. "${OBELISK_LIB:-/usr/local/lib/obelisk}/common.sh"
begin tokens "$EXIT_TOKENS"

rotate=false
case ${1:-} in
  '') ;;
  --rotate) rotate=true ;;
  *) echo "usage: ${0##*/} [--rotate]" >&2; exit "$EXIT_USAGE" ;;
esac
settings

readonly file=$TOKENS_DIR/api_tokens.env previous=$TOKENS_DIR/api_tokens.previous

# make NAME: a new value.
make() {
  case $1 in
    LITELLM_API_TOKEN) printf 'sk-%s' "$(openssl rand -hex 24)" ;;
    RAG_API_TOKEN) openssl rand -hex 24 ;;
    WEBUI_SECRET_KEY) openssl rand -base64 32 ;;
  esac
}

readonly names=(LITELLM_API_TOKEN RAG_API_TOKEN WEBUI_SECRET_KEY)

# Copies that a killed job left behind; young ones may be of a job that is at work beside this one.
for left in "$TOKENS_DIR"/.new.?????? "$CONFIG_DIR"/*/.new.??????; do
  if [ -f "$left" ] && [ "$((EPOCHSECONDS - $(stat -c %Y "$left")))" -gt 3600 ]; then rm -f -- "$left"; fi
done

text='' added=() there=false
if [ -e "$file" ]; then
  { [ -f "$file" ] && [ -r "$file" ]; } || fail "$file is there but cannot be read by user $(id -u)"
  there=true
fi
for name in "${names[@]}"; do
  value=''
  if $there && ! $rotate; then
    value=$(token "$name" "$file") || value=''
    case $name,$value in
      *,) ;;
      LITELLM_API_TOKEN,sk-*) ;;
      LITELLM_API_TOKEN,*) fail "$file holds a LITELLM_API_TOKEN that does not begin with sk-: mend it or run with --rotate" ;;
    esac
  fi
  if [ -z "$value" ]; then
    value=$(make "$name")
    added+=("$name")
  fi
  text+="$name=$value"$'\n'
done

if [ "${#added[@]}" -gt 0 ]; then
  new=$(mktemp -- "$TOKENS_DIR/.new.XXXXXX")
  printf %s "$text" >"$new"
  seal 0440 "$new"
  if $there; then
    # LiteLLM still knows the old token; configure-services.sh has it deleted, and those that already wait for that.
    if $rotate && old=$(token LITELLM_API_TOKEN "$file") && [ -n "$old" ]; then
      waiting=$(replaced "$previous" "LITELLM_API_TOKEN=$old")
      install_file 0440 "$previous" "${waiting:+$waiting$'\n'}LITELLM_API_TOKEN=$old" || [ "$?" -eq "$SAME" ]
    fi
    mv -fT -- "$new" "$file"
    if $rotate; then changed "tokens rotated"; else changed "tokens added: ${added[*]}"; fi
  else
    # A link, unlike a rename, fails where another job was quicker: its tokens are then the ones.
    if ln -T -- "$new" "$file" 2>/dev/null; then changed "tokens created"; else log info "tokens were created by another job"; fi
    rm -f -- "$new"
  fi
else
  log info "tokens unchanged"
fi

mode=$(stat -c %a "$file")
if [ "$mode" != 440 ]; then
  seal 0440 "$file"
  changed "permissions of the tokens set to 0440"
fi
