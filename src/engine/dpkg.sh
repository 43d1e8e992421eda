#!/bin/sh
# Has dpkg configure packages in a stage, as fakeroot's root: sh dpkg.sh
# Beside it lie the packages, `owners` (mode, uid, gid and path of what a folder of an ordinary user cannot have), `alternatives` (arguments
# of update-alternatives) and `forget` (paths, one a line).
set -eu
here=${0%/*}
while read -r mode uid gid path; do
  chown --no-dereference "$uid:$gid" "$path"
  [ -L "$path" ] || chmod "$mode" "$path"
done <"$here/owners"

# dpkg's own record of what the stage holds; those that are to be configured come new.
database=/var/lib/dpkg
mkdir -p "$database/info" "$database/updates" "$database/parts" "$database/triggers" "$database/alternatives"
names=" "
for package in "$here"/*.deb; do names="$names$(dpkg-deb --field "$package" Package) "; done
{
  [ ! -s "$database/status" ] || awk -v names="$names" 'BEGIN { RS = ""; ORS = "\n\n" } { split($0, line, "\n"); name = line[1]
    sub(/^Package: */, "", name); if (index(names, " " name " ") == 0) print }' "$database/status"
  for file in "$database"/status.d/*; do
    name=$(sed -n 's/^Package: *//p' "$file")
    case $name in '') continue ;; esac
    case $names in *" $name "*) continue ;; esac
    echo "Status: install ok installed"
    sed '/^Status:/d; /^$/d' "$file"
    echo
  done
} >"$database/status-new"
mv "$database/status-new" "$database/status"
while read -r arguments; do
  eval "update-alternatives --quiet $arguments"
done <"$here/alternatives"

# Alternatives of manual pages fail where their folders were left out.
pages=/usr/share/man
for section in 1 2 3 4 5 6 7 8 9; do mkdir -p "$pages/man$section"; done

# No service is started.
policy=/usr/sbin/policy-rc.d
[ -e "$policy" ] || printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"
dpkg --log=/dev/null --force-confold --force-depends --force-unsafe-io --install "$here"/*.deb

rmdir --ignore-fail-on-non-empty "$pages"/man? "$pages"
while IFS= read -r path; do rm -rf "$path"; done <"$here/forget"
find / -xdev \( -path /proc -o -path /dev -o -path "$here" \) -prune -o \
  \( ! -uid 0 -o ! -gid 0 -o -perm /6000 \) -printf '%m %U %G %p\n' >/.imgbuild-owners
