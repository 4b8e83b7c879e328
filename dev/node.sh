#!/usr/bin/env bash
# Runs a bundle on a GPU node. Made by dev/bundle.sh; needs a driver, and for some verbs CUDA's
# tools. Reports go to $OUT, or to `out` beside this script.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-$here/out}
mkdir -p "$out"

usage() {
    cat >&2 <<'EOF'
run.sh test [FILTER]                  CPU tests, then the GPU tests that the GPUs found suffice for
run.sh sanitize [TOOL] [FILTER]       compute-sanitizer over the GPU tests; TOOL is memcheck,
                                      racecheck, synccheck, initcheck or all
run.sh bench [NAME [ARGS...]]         one bench, or all
run.sh profile KERNEL [COMMAND...]    Nsight Compute over KERNEL (a regular expression), by default
                                      in the bench of its room, else in kv-validate
run.sh validate [ARGS...]             the main job: host kv-validate ARGS
LIMIT=SECONDS bounds each program started (default 300).
EOF
    exit 2
}

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

verb=${1:-}
[ $# -gt 0 ] && shift
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
    kernel=$1
    shift
    if [ $# -eq 0 ]; then
        set -- "$here/bin/host" kv-validate
        for bench in "$here"/benches/*; do
            [[ $kernel == "$(basename "$bench")"* ]] && set -- "$bench" --bench
        done
    fi
    bounded ncu --set full --import-source no --target-processes all --kernel-name "regex:$kernel" \
        --launch-skip 10 --launch-count 3 --force-overwrite --export "$out/profile" "$@"
    exit
    ;;
validate)
    bounded "$here/bin/host" kv-validate "$@"
    exit
    ;;
*)
    usage
    ;;
esac
[ $runs -gt 0 ] || echo "nothing to run" >&2
[ $runs -gt 0 ] && [ $failures -eq 0 ]
