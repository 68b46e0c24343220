#!/usr/bin/env bash
# Make an environment for each trainer of docs/other-trainers.md, with the pinned packages of <client>.lock:
#   tests/clients/make_envs.sh FOLDER
# PyTorch is that of .venv, by links, so that it is not installed four times. An environment that is complete is kept.
# PYTHON: of the environments; LLaVA's packages exist for 3.11 and 3.12 only.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
folder="$(mkdir -p "$1" && cd "$1" && pwd)"
python="${PYTHON:-$here/../../.venv/bin/python}"
torch="$("$here/../../.venv/bin/python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])')"

for list in "$here"/*.lock; do
  client="$(basename "$list" .lock)"
  environment="$folder/$client"
  if cmp -s "$list" "$environment/complete"; then
    continue
  fi
  echo "installing $client in $environment"
  rm -rf "$environment"
  "$python" -m venv "$environment"
  "$environment/bin/python" -m pip install --quiet --no-compile --no-deps --requirement "$list"
  packages="$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  for path in "$torch"/{torch,torch-*,torchgen,functorch,torchvision,torchvision-*,torchvision.libs,triton,triton-*,nvidia,nvidia_*,cuda,cuda_*}; do
    if [ -e "$path" ]; then
      ln -s "$path" "$packages/"
    fi
  done
  cp "$list" "$environment/complete"
done
