#!/bin/bash
# Gives each volume below /volumes to UID:GID ($1). Runs as root with CAP_CHOWN alone; a volume that already belongs
# to its service is left as it is, so a start costs nothing however many files there are.
set -euo pipefail
owner=$1
for volume in /volumes/*/; do
  if [ "$(stat -c %u:%g "$volume")" = "$owner" ]; then
    echo "unchanged: $volume"
  else
    chown -R "$owner" "$volume"
    echo "given to $owner: $volume"
  fi
done
