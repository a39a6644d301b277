#!/bin/sh
# Debian for ARM boards, with Python and NumPy, unpacked below a folder: tests change their root into
# it. Nothing is installed and no root is needed: apt has a state of its own there, and dpkg-deb
# unpacks. Packages' own scripts do not run; what is needed of them is at the end.
#
#   boards.sh FOLDER     makes FOLDER/arm64/usr and FOLDER/armhf/usr
set -eu

packages='python3-minimal python3 libstdc++6 libgomp1 python3-numpy python3-venv dash coreutils sed grep'

mkdir -p "$1"
boards=$(realpath "$1")
for pair in arm64:aarch64-linux-gnu armhf:arm-linux-gnueabihf; do
    architecture=${pair%:*} libraries=usr/lib/${pair#*:}
    root=$boards/$architecture
    if [ -d "$root" ]; then
        echo "Debian for $architecture is here"
        continue
    fi
    work=$boards/.$architecture
    rm -rf "$work"
    mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/unpacked/usr/bin" "$work/unpacked/usr/sbin"
    mkdir -p "$work/unpacked/usr/lib"
    : >"$work/status"
    ln -s usr/bin usr/sbin usr/lib "$work/unpacked"
    apt() {
        apt-get -qq -o Dir::State="$work/state" -o Dir::State::status="$work/status" -o Dir::Cache="$work/cache" \
            -o APT::Architecture="$architecture" -o APT::Architectures="$architecture" \
            -o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none "$@"
    }
    # An update that fails in part leaves lists that may do: the next command decides.
    apt update >"$work/log" 2>&1 || true
    # shellcheck disable=SC2086 # words
    if apt --yes --no-install-recommends --download-only install $packages >>"$work/log" 2>&1 &&
        (for package in "$work"/cache/archives/*.deb; do
            dpkg-deb --fsys-tarfile "$package" 2>>"$work/log" |
                tar --extract --keep-directory-symlink --directory "$work/unpacked" 2>>"$work/log" || exit 1
        done); then
        for name in blas lapack; do # update-alternatives would
            ln -s "$name/lib$name.so.3" "$work/unpacked/$libraries/lib$name.so.3"
        done
        mv "$work/unpacked" "$root"
        echo "Debian for $architecture is in $root"
    else
        echo "no Debian for $architecture ($(tail -n1 "$work/log")): what needs it is skipped"
    fi
    rm -rf "$work"
done
