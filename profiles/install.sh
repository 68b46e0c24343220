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
if [ -e "$target/config.yaml" ]; then
  cp "$target/config.yaml" "$target/config.yaml.before"
  echo "the previous profile was saved as $target/config.yaml.before"
fi
sed -e "" "${program[@]}" "$source" >"$target/config.yaml"
echo "wrote $target/config.yaml: run snakemake --profile $profile in this folder"
