#!/bin/sh
# Starts the retrieval service.
#   serve | index | query | stats | config   commands of `obelisk rag`, with their arguments (default: serve)
#   COMMAND                                  anything else is run as it is
set -eu

case ${1:-} in
  '') exec python3 -m obelisk rag serve ;;
  serve | index | query | stats | config | -h | --help) exec python3 -m obelisk rag "$@" ;;
  -*) exec python3 -m obelisk rag serve "$@" ;;
  *) exec "$@" ;;
esac
