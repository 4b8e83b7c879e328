# Each verb is a step of .ci/run, where it is defined; `just ci` runs them all.

_default:
    @just --list

# Everything that must pass before a change lands.
ci:
    .ci/run

# Get the sources of `core`, which PTX is built from.
rust_src:
    .ci/run rust_src

# Get ptxas, for the PTX gate.
ptxas:
    .ci/run ptxas

# Check the formatting.
format:
    .ci/run format

# clippy, warnings are errors.
lint:
    .ci/run lint

# Every test, and the PTX gate.
test:
    .ci/run test

# Replay the small trace on this machine.
main_job:
    .ci/run main_job

# Run every benchmark once, tiny.
bench_smoke:
    .ci/run bench_smoke

# Gather in .bundle what a GPU node without Rust needs.
bundle:
    dev/bundle.sh
