#!/bin/bash
# Gives each volume below /volumes, and whatever is in it, to UID:GID ($1): a new volume belongs to root, and so does what was
# copied into an old one. Runs as root with CAP_CHOWN, and CAP_DAC_OVERRIDE to look into folders that are closed to others. Nothing is
# touched where all of it belongs to its service already.
set -euo pipefail
owner=$1

# others FOLDER: whether anything below it belongs to somebody else. A line is TYPE-AND-MODE UID GID; runs of equal ones are one,
# so that there is little to read. What is removed meanwhile is nobody's.
others() {
  local kind uid gid
  # shellcheck disable=SC2012 # There is no find in the image, and no name in what is read.
  while read -r kind uid gid; do
    case $kind in [-bcdlps]*) [ "$uid:$gid" = "$owner" ] || return 0 ;; esac
  done < <(ls -AlnRU --quoting-style=escape -- "$1" | tr -s ' ' | cut -s -d ' ' -f 1,3,4 | uniq)
  return 1
}

for volume in /volumes/*/; do
  if [ "$(stat -c %u:%g "$volume")" = "$owner" ] && ! others "$volume"; then
    echo "unchanged: $volume"
  else
    chown -R "$owner" "$volume"
    echo "given to $owner: $volume"
  fi
done
