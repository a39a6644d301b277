#!/bin/sh
# Debian for ARM boards, with Python and NumPy, unpacked below a folder: tests change their root into
# it. Nothing is installed and no root is needed: apt has a state of its own there, and dpkg-deb
# unpacks. Packages' own scripts do not run; what is needed of them is at the end.
#
#   boards.sh FOLDER     makes FOLDER/arm64/usr and FOLDER/armhf/usr, of this machine's release, and
#                        FOLDER/arm64-bullseye and -trixie, with an older and a newer Python
set -eu

packages='python3-minimal python3 libstdc++6 libgomp1 python3-numpy python3-venv dash coreutils sed grep'
keys=/usr/share/keyrings/debian-archive-keyring.gpg

mkdir -p "$1"
boards=$(realpath "$1")
for name in arm64 armhf arm64-bullseye arm64-trixie; do
    case $name in
    arm64*) libraries=usr/lib/aarch64-linux-gnu ;;
    *) libraries=usr/lib/arm-linux-gnueabihf ;;
    esac
    architecture=${name%-*}
    root=$boards/$name
    if [ -d "$root" ]; then
        echo "Debian for $name is here"
        continue
    fi
    work=$boards/.$name
    rm -rf "$work"
    mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/unpacked/usr/bin" "$work/unpacked/usr/sbin"
    mkdir -p "$work/unpacked/usr/lib"
    : >"$work/status"
    sources=
    if [ "$name" != "$architecture" ]; then # from the same archive as this machine's
        archive=$(apt-get indextargets --format '$(SITE)' 2>/dev/null | grep -m1 '/debian/*$' || true)
        echo "deb [signed-by=$keys] $archive ${name#*-} main" >"$work/sources"
        sources="-o Dir::Etc::sourcelist=$work/sources -o Dir::Etc::sourceparts=/dev/null"
    fi
    ln -s usr/bin usr/sbin usr/lib "$work/unpacked"
    apt() {
        # shellcheck disable=SC2086 # options
        apt-get $sources -qq -o Dir::State="$work/state" -o Dir::State::status="$work/status" -o Dir::Cache="$work/cache" \
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
        for library in blas lapack; do # update-alternatives would
            ln -s "$library/lib$library.so.3" "$work/unpacked/$libraries/lib$library.so.3"
        done
        mv "$work/unpacked" "$root"
        echo "Debian for $name is in $root"
    else
        echo "no Debian for $name ($(tail -n1 "$work/log")): what needs it is skipped"
    fi
    rm -rf "$work"
done
