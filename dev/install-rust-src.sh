#!/usr/bin/env bash
# Puts the sources of `core` into the toolchain where `rustup component add rust-src` may not:
#   dev/install-rust-src.sh [SYSROOT]
# Order: already there; Debian's package rust-src of the same version; a copy kept beside the
# checkout. Writes nothing outside SYSROOT and a temporary folder, and needs root only where
# SYSROOT does.
set -euo pipefail
cd "$(dirname "$0")/.."

version=1.95.0
package=rust-src
package_version="$version+dfsg1-2~bpo13+1"
suite=trixie-backports
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
beside=../shared/toolchain/install-rust-src.sh

sysroot=${1:-$(rustc --print sysroot)}
dest=$sysroot/lib/rustlib/src/rust

say() { echo "rust-src: $*" >&2; }
is_there() { [ -f "$dest/library/Cargo.lock" ]; }

from_debian() {
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || { say "not a Debian system"; return 1; }
    [ -f "$keyring" ] || { say "Debian's keys are not in $keyring"; return 1; }
    local mirror
    mirror=$(apt-get indextargets --format '$(REPO_URI)' | grep -m 1 -E '/debian/?$') ||
        { say "apt knows no Debian mirror"; return 1; }

    # An apt of its own: the system's package lists stay as they are.
    mkdir -p "$scratch/state/lists/partial" "$scratch/cache/archives/partial"
    echo "deb [signed-by=$keyring] $mirror $suite main" >"$scratch/sources.list"
    cat >"$scratch/apt.conf" <<EOF
Dir::Etc::sourcelist "$scratch/sources.list";
Dir::Etc::sourceparts "-";
Dir::State "$scratch/state";
Dir::State::status "/dev/null";
Dir::Cache "$scratch/cache";
APT::Sandbox::User "";
EOF
    (
        cd "$scratch"
        export APT_CONFIG=$scratch/apt.conf
        apt-get -qq update && apt-get -qq download "$package=$package_version"
    ) || { say "could not download $package $package_version from $mirror"; return 1; }
    dpkg-deb -x "$scratch"/"$package"_*.deb "$scratch/unpacked"
    mkdir -p "$dest"
    cp -r "$scratch/unpacked/usr/src/rustc-$version/library" "$dest/library.partial"
    mv "$dest/library.partial" "$dest/library"
}

from_beside() {
    [ -f "$beside" ] || { say "no copy beside the checkout"; return 1; }
    bash "$beside"
}

if is_there; then
    say "already in $dest"
    exit
fi
found=$(rustc --version | cut -d ' ' -f 2)
if [ "$found" != "$version" ]; then
    say "this script gets the sources of $version, but rustc is $found"
    exit 1
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
from_debian || from_beside || true
if ! is_there; then
    say "not installed. Without them the build holds no GPU kernels, and everything runs on the CPU"
    exit 1
fi
say "installed in $dest"
