#!/bin/sh
# Renews the lock files from pyproject.toml, hashes of every file included: run it after a dependency has changed.
#   deploy/image/lock.sh [--upgrade] [--out-dir FOLDER]
# It needs uv. Versions that still fit are kept, unless --upgrade is given. No address of an index gets into a file, so
# that pip asks whichever one is set up where the image is built; the hashes decide whether its answer is taken.
set -eu
cd "$(dirname "$0")/../.."
out=deploy/image
upgrade=
while [ $# -gt 0 ]; do
  case "$1" in
    --upgrade) upgrade=--upgrade ;;
    --out-dir) out="$2"; shift ;;
    *) echo "lock.sh: unknown option $1" >&2; exit 2 ;;
  esac
  shift
done

# the oldest Python that is supported; markers keep what newer ones need less or more, since the base of GPUs has its own
lock() {
  name="$1"; shift
  uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
    --no-header $upgrade --output-file "$out/requirements-$name.txt" "$@"
}

lock cpu pyproject.toml --extra store --extra kubernetes
lock gpu pyproject.toml --extra store --extra kubernetes --extra gpu
lock build deploy/image/build.in
