#!/usr/bin/env bash
# Copy a profile to the user's Snakemake folder and fill in NAME=value in the lines marked <--
set -euo pipefail
profile=$1; shift
source="$(dirname "$0")/$profile/config.yaml"
target="${XDG_CONFIG_HOME:-$HOME/.config}/snakemake/$profile"
program=()
for pair in "$@"; do
  name=${pair%%=*} value=${pair#*=}
  [[ $value =~ ^[A-Za-z0-9_.,-]*$ ]] || { echo "$name=$value: invalid value; use letters, digits and . _ - , only" >&2; exit 2; }
  [ -z "$value" ] || program+=(-e "s/# \\(.*[^A-Z_]\\)$name\\(}*\\)  *# <--/\\1$value\\2/")
done
mkdir -p "$target"
new=$(mktemp "$target/.config.yaml.XXXXXX")
trap 'rm -f "$new"' EXIT
sed -e "" "${program[@]}" "$source" >"$new"
chmod 644 "$new"
if [ -e "$target/config.yaml" ] && ! cmp -s "$new" "$target/config.yaml"; then
  before="$target/config.yaml.before" number=2
  while [ -e "$before" ]; do  # never over a copy of an earlier time
    before="$target/config.yaml.before-$number" number=$((number + 1))
  done
  cp -p "$target/config.yaml" "$before"
  echo "the previous profile was saved as $before"
fi
mv "$new" "$target/config.yaml"
echo "wrote $target/config.yaml: run .venv/bin/snakemake --profile $profile in this folder"
