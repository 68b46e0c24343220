#!/usr/bin/env bash
# Make an environment for each trainer of docs/other-trainers.md, with the pinned packages of <client>.lock:
#   tests/clients/make_envs.sh FOLDER
# Python and PyTorch are those of .venv, PyTorch by links, so that it is not installed four times. A complete environment
# is kept. One whose packages do not exist for this Python is left out (LLaVA's exist for 3.11), and so are its tests.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
folder="$(mkdir -p "$1" && cd "$1" && pwd)"
python="$here/../../.venv/bin/python"
torch="$("$python" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])')"

for list in "$here"/*.lock; do
  client="$(basename "$list" .lock)"
  environment="$folder/$client"
  if cmp -s "$list" "$environment/complete"; then
    continue
  fi
  echo "installing $client in $environment"
  rm -rf "$environment"
  "$python" -m venv "$environment"
  if ! "$environment/bin/python" -m pip install --quiet --no-compile --no-deps --requirement "$list"; then
    echo "$client cannot be installed, see above; its tests are left out"
    rm -rf "$environment"
    continue
  fi
  packages="$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  for path in "$torch"/{torch,torch-*,torchgen,functorch,torchvision,torchvision-*,torchvision.libs,triton,triton-*,nvidia,nvidia_*,cuda,cuda_*}; do
    if [ -e "$path" ]; then
      ln -s "$path" "$packages/"
    fi
  done
  cp "$list" "$environment/complete"
done
