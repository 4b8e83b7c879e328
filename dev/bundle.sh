#!/usr/bin/env bash
# Gathers in .bundle/ what a GPU node without Rust needs to test, sanitize, measure and profile:
#   dev/bundle.sh
# Then, on the node: .bundle/run.sh (without arguments it tells its verbs).
#
#   .bundle/run.sh           what runs there, from dev/node.sh
#   .bundle/bin/host         the program
#   .bundle/tests/           test executables
#   .bundle/benches/         bench executables
#   .bundle/tests.tsv        package folder and executable of each
#   .bundle/gpu-tests.tsv    GPUs needed, executable and name of each ignored test
#   .bundle/root/            the workspace as tests see it: snapshots, expectations
set -euo pipefail
cd "$(dirname "$0")/.."
bundle=.bundle
limit_mib=60

rm -rf "$bundle"
mkdir -p "$bundle"/{bin,tests,benches,root}
cp dev/node.sh "$bundle/run.sh"

# One profile for all, so that dependencies are compiled once.
build() { cargo "$@" --profile bench --message-format=json-render-diagnostics; }
{
    build build --bin host
    # These have nothing to do with a GPU, and run where the compiler is.
    build test --workspace --no-run --lib --bins --tests --benches \
        --exclude farpage-cuda-builder --exclude farpage-cuda-std --exclude farpage-cuda-std-macros
} | python3 dev/collect.py "$bundle"

git ls-files -z '*.snap' 'expectations/*' | xargs -0 --no-run-if-empty cp --parents -t "$bundle/root"
strip "$bundle"/{bin,tests,benches}/* 2>/dev/null || true

size_mib=$(du -sm "$bundle" | cut -f 1)
echo "$bundle: $size_mib MiB"
if [ "$size_mib" -ge "$limit_mib" ]; then
    echo "$bundle must stay below $limit_mib MiB" >&2
    exit 1
fi
