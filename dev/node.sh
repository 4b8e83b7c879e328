#!/usr/bin/env bash
# Runs a bundle on a GPU node. Made by dev/bundle.sh; needs a driver, and for some verbs CUDA's
# tools. Reports go to $OUT, or to `out` beside this script. The archive beside it is unpacked at
# the first use, beside itself or, where that cannot be written, into $TMPDIR.
set -uo pipefail
beside=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-$beside/out}

usage() {
    cat >&2 <<'EOF'
run.sh test [FILTER]                  CPU tests, then the GPU tests that the GPUs found suffice for
run.sh sanitize [TOOL] [FILTER]       compute-sanitizer over the GPU tests; TOOL is memcheck,
                                      racecheck, synccheck, initcheck or all
run.sh bench [NAME [ARGS...]]         one bench, or all
run.sh profile KERNEL [ARGS...]       Nsight Compute over one kernel by its name: host profile ARGS
run.sh validate [ARGS...]             the main job: host kv-validate ARGS
run.sh record [ARGS...]               a release's recorded run: pairs measured and kept in $OUT/runs,
                                      with a report; $OUT/expectations updated, and checked twice.
                                      ARGS of host run, by default: all --shapes real
LIMIT=SECONDS bounds each program started, and a record as a whole (default 300).
EOF
    exit 2
}

# unpack ARCHIVE FOLDER: all of it, or no folder at all.
unpack() {
    local part
    part=$(mktemp -d "$2.XXXXXX") || return
    # Without xz, Python's module for it.
    if { tar -xJf "$1" -C "$part" 2>/dev/null || python3 -m tarfile -e "$1" "$part"; }; then
        mv -T "$part" "$2" 2>/dev/null && return
    fi
    rm -rf "$part"
    # Another run.sh may have been first.
    [ -d "$2" ]
}

[ $# -gt 0 ] || usage
archive=$beside/bundle.tar.xz
parent=$beside
[ -w "$beside" ] || parent=${TMPDIR:-/tmp}
# The name tells the contents, so that nothing of an older bundle is run.
here=$parent/unpacked-$(cksum <"$archive" | cut -d ' ' -f 1)
[ -d "$here" ] || unpack "$archive" "$here" || { echo "$archive cannot be unpacked" >&2; exit 1; }
mkdir -p "$out" || exit

export INSTA_UPDATE=no INSTA_WORKSPACE_ROOT=$here/root
export CARGO_BIN_EXE_host=$here/bin/host
export CRITERION_HOME=$out/criterion
bounded() { timeout --kill-after=10 "${LIMIT:-300}" "$@"; }

num_gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU')
runs=0
failures=0

# verdict NAME COMMAND...: runs, keeps the output in $out, shows it where the command fails.
verdict() {
    local name=$1 log=$out/$1.log status
    shift
    runs=$((runs + 1))
    "$@" >"$log" 2>&1
    status=$?
    if [ $status -eq 0 ]; then
        echo "pass  $name"
    else
        tail -n 60 "$log"
        echo "FAIL  $name (exit status $status; the whole output is in $log)"
        failures=$((failures + 1))
    fi
}

# each_test_executable FUNCTION: calls FUNCTION with the folder of its package and its name.
each_test_executable() {
    local folder name
    while IFS=$'\t' read -r folder name <&3; do
        "$1" "$folder" "$name"
    done 3<"$here/tests.tsv"
}

# gpu_tests EXECUTABLE FILTER: the names of its GPU tests that can run here.
gpu_tests() {
    awk -F '\t' -v gpus="$num_gpus" -v executable="$1" -v filter="$2" \
        '$1 <= gpus && $2 == executable && index($3, filter) { print $3 }' "$here/gpu-tests.tsv"
}

cpu_tests_of() {
    cd "$here/root/$1" || exit
    verdict "cpu-$2" bounded "$here/tests/$2" $filter
}

gpu_tests_of() {
    local names
    mapfile -t names < <(gpu_tests "$2" "$filter")
    [ ${#names[@]} -gt 0 ] || return 0
    cd "$here/root/$1" || exit
    verdict "gpu-$2" bounded "$here/tests/$2" --ignored --exact --test-threads=1 "${names[@]}"
}

sanitize_of() {
    local names
    mapfile -t names < <(gpu_tests "$2" "$filter")
    [ ${#names[@]} -gt 0 ] || return 0
    cd "$here/root/$1" || exit
    verdict "$tool-$2" bounded compute-sanitizer --tool "$tool" --error-exitcode 99 \
        "$here/tests/$2" --ignored --exact --test-threads=1 "${names[@]}"
}

# step NAME COMMAND...: a step of a record, which ends where $LIMIT is over. What a run has measured
# by then, it has kept.
step() {
    local name=$1 left=$((LIMIT - SECONDS)) status
    shift
    echo "=== $name, $left s left"
    [ $left -gt 0 ] || { echo "LIMIT=$LIMIT s was over before: $name" >&2; exit 1; }
    timeout --signal=INT --kill-after=10 "$left" "$@" 2>&1 | tee "$out/record-$name.log"
    status=${PIPESTATUS[0]}
    [ "$status" -ne 124 ] || { echo "LIMIT=$LIMIT s was over during: $name" >&2; exit 1; }
    [ "$status" -eq 0 ] || { echo "$name failed (exit status $status)" >&2; exit 1; }
}

verb=$1
shift
case $verb in
test)
    filter=${1:-}
    echo "$num_gpus GPUs"
    each_test_executable cpu_tests_of
    each_test_executable gpu_tests_of
    num_skipped=$(awk -F '\t' -v gpus="$num_gpus" '$1 > gpus' "$here/gpu-tests.tsv" | wc -l)
    echo "$num_skipped GPU tests need more GPUs than there are"
    ;;
sanitize)
    filter=${2:-}
    tools=${1:-all}
    [ "$tools" = all ] && tools="memcheck racecheck synccheck initcheck"
    [ "$num_gpus" -gt 0 ] || { echo "no GPU" >&2; exit 1; }
    for tool in $tools; do
        each_test_executable sanitize_of
    done
    ;;
bench)
    if [ $# -gt 0 ]; then
        name=$1
        shift
        bounded "$here/benches/$name" --bench "$@" 2>&1 | tee "$out/bench-$name.log"
        exit "${PIPESTATUS[0]}"
    fi
    for bench in "$here"/benches/*; do
        verdict "bench-$(basename "$bench")" bounded "$bench" --bench
        cat "$out/bench-$(basename "$bench").log"
    done
    ;;
profile)
    [ $# -gt 0 ] || usage
    bounded "$here/bin/host" profile --run --tool ncu --out "$out" "$@"
    exit
    ;;
validate)
    bounded "$here/bin/host" kv-validate "$@"
    exit
    ;;
record)
    [ $# -gt 0 ] || set -- all --shapes real
    : "${LIMIT:=300}"
    host=$here/bin/host
    mkdir -p "$out/expectations"
    cp "$here"/root/expectations/* "$out/expectations"
    expectations=("$host" expectations --folder "$out/expectations")
    step run "$host" run "$@" --out "$out/runs"
    step report "$host" report "$out/runs"
    step update "${expectations[@]}" update --results "$out/runs"
    step check-1 "${expectations[@]}" check "$@"
    step check-2 "${expectations[@]}" check "$@"
    echo "recorded in $out: runs, expectations"
    exit
    ;;
*)
    usage
    ;;
esac
[ $runs -gt 0 ] || echo "nothing to run" >&2
[ $runs -gt 0 ] && [ $failures -eq 0 ]
