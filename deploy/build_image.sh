#!/usr/bin/env bash
# Builds the image with docker or podman, whichever runs here: `make image`. Settings come from the environment:
#
#   IMAGE         its name (segserve)
#   TARGET        what to build of deploy/Dockerfile: server, onnx or page (server)
#   BASE_IMAGE, TORCH_INDEX, EXTRAS, MODEL    build arguments, see deploy/Dockerfile
#   OCI_BUILD     further options of `docker build` or `podman build`
set -euo pipefail
cd "$(dirname "$0")/.."

for engine in docker podman none; do
  if "$engine" info >/dev/null 2>&1; then break; fi
done
if [ "$engine" = none ]; then
  echo "neither docker nor podman runs here: install or start one of them" >&2
  exit 1
fi

arguments=(--build-arg "VERSION=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' segserve/__init__.py)")
arguments+=(--build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)")
for name in BASE_IMAGE TORCH_INDEX EXTRAS MODEL; do
  if [ -n "${!name:-}" ]; then arguments+=(--build-arg "$name=${!name}"); fi
done
# shellcheck disable=SC2086 # OCI_BUILD is several options
"$engine" build ${OCI_BUILD:-} "${arguments[@]}" --target "${TARGET:-server}" --tag "${IMAGE:-segserve}" --file deploy/Dockerfile .
"$engine" image inspect --format "${IMAGE:-segserve}: {{.Size}} bytes" "${IMAGE:-segserve}"
