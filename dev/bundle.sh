#!/usr/bin/env bash
# Packs in .bundle/ what a GPU node without Rust needs to test, sanitize, measure and profile:
#   dev/bundle.sh
# Then, on the node: .bundle/run.sh (without arguments it tells its verbs).
#
#   .bundle/run.sh           what runs there, from dev/node.sh
#   .bundle/bundle.tar.xz    what it unpacks at its first use:
#       bin/host             the program
#       tests/               test executables
#       benches/             bench executables
#       tests.tsv            package folder and executable of each
#       gpu-tests.tsv        GPUs needed, executable and name of each ignored test
#       root/                the workspace as tests see it, which start in their package's folder:
#                            snapshots, expectations, checkpoints, and what they look into
set -euo pipefail
cd "$(dirname "$0")/.."
bundle=.bundle
limit_mib=60

contents=$(mktemp -d)
trap 'rm -rf "$contents"' EXIT
mkdir -p "$contents"/{bin,tests,benches,root}

# One profile for all, so that dependencies are compiled once.
build() { cargo "$@" --profile bench --message-format=json-render-diagnostics; }
{
    build build --bin host
    # These have nothing to do with a GPU, and run where the compiler is.
    build test --workspace --no-run --lib --bins --tests --benches \
        --exclude farpage-cuda-builder --exclude farpage-cuda-std --exclude farpage-cuda-std-macros
} | python3 dev/collect.py "$contents"

git ls-files -z '*.snap' 'expectations/*' 'tests/checkpoints/*' 'benches/*.rs' Cargo.toml \
    host/src/harness/report/sample.json | xargs -0 --no-run-if-empty cp --parents -t "$contents/root"
strip "$contents"/{bin,tests,benches}/* 2>/dev/null || true

rm -rf "$bundle"
mkdir "$bundle"
cp dev/node.sh "$bundle/run.sh"
# Every executable holds the same crates: a dictionary that spans several of them finds that.
tar --create --sort=name --owner=0 --group=0 --directory "$contents" . |
    xz --threads=2 --lzma2=preset=3,dict=64MiB >"$bundle/bundle.tar.xz"

size_mib=$(du -sm "$bundle" | cut -f 1)
echo "$bundle: $size_mib MiB, unpacked $(du -sm "$contents" | cut -f 1) MiB"
if [ "$size_mib" -ge "$limit_mib" ]; then
    echo "$bundle must stay below $limit_mib MiB" >&2
    exit 1
fi
