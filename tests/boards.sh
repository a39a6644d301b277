#!/bin/sh
# Debian for ARM boards, with Python and NumPy, unpacked below a folder: tests change their root into
# it. Nothing is installed and no root is needed: apt has a state of its own there, and dpkg-deb
# unpacks. Packages' own scripts do not run; what is needed of them is in `python`.
#
#   boards.sh FOLDER     makes in FOLDER
#       arm64 armhf              of this machine's release
#       arm64-systemd            systemd, to be laid over arm64
#       arm64-bullseye -trixie   with an older and a newer Python
#       kernel machine           a kernel for arm64, and QEMU for a whole machine, unless it is here
set -eu

keys=/usr/share/keyrings/debian-archive-keyring.gpg

mkdir -p "$1"
boards=$(realpath "$1")

debian() { # folder's name, architecture, release or "", packages, function that ends it
    root=$boards/$1
    if [ -d "$root" ]; then
        echo "Debian's $1 is here"
        return
    fi
    work=$boards/.$1 unpacked=$boards/.$1/unpacked
    rm -rf "$work"
    mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial"
    : >"$work/status"
    sources=
    if [ -n "$3" ]; then # from the same archive as this machine's
        # shellcheck disable=SC2016 # apt reads that
        archive=$(apt-get indextargets --format '$(SITE)' 2>/dev/null | grep -m1 '/debian/*$' || true)
        echo "deb [signed-by=$keys] $archive $3 main" >"$work/sources"
        sources="-o Dir::Etc::sourcelist=$work/sources -o Dir::Etc::sourceparts=/dev/null"
    fi
    options="-qq -o Dir::State=$work/state -o Dir::State::status=$work/status -o Dir::Cache=$work/cache"
    options="$options -o APT::Architecture=$2 -o APT::Architectures=$2 -o Acquire::Languages=none"
    options="$options -o APT::Sandbox::User=$(id -un) $sources"
    # An update that fails in part leaves lists that may do: the next command decides.
    # shellcheck disable=SC2086 # words
    {
        apt-get $options update >"$work/log" 2>&1 || true
        apt-get $options --yes --no-install-recommends --download-only install $4 >>"$work/log" 2>&1
    } && unpack "$work" "$5" 2>>"$work/log" && mv "$unpacked" "$root" && echo "Debian's $1 is in $root" ||
        echo "no $1 of Debian ($(tail -n1 "$work/log")): what needs it is skipped"
    rm -rf "$work"
}

unpack() ( # work folder, function that ends it
    mkdir -p "$1/unpacked/usr/bin" "$1/unpacked/usr/sbin" "$1/unpacked/usr/lib" "$1/unpacked/usr/lib64"
    cd "$1/unpacked"
    ln -s usr/bin usr/sbin usr/lib usr/lib64 .
    # shellcheck disable=SC2231 # a pattern
    for package in ../cache/archives/${only:-}*.deb; do
        dpkg-deb --fsys-tarfile "$package" |
            tar --extract --keep-directory-symlink ${part:+--wildcards "$part"} || exit 1
    done
    $2
)

python() { # what update-alternatives would do
    for library in blas lapack; do
        for folder in usr/lib/*/"$library"; do
            ln -s "$library/lib$library.so.3" "$folder/../lib$library.so.3"
        done
    done
}

of_board='python3-minimal python3 libstdc++6 libgomp1 python3-numpy python3-venv dash coreutils sed grep'
debian arm64 arm64 '' "$of_board" python
debian arm64-systemd arm64 '' systemd :
debian armhf armhf '' "$of_board" python
debian arm64-bullseye arm64 bullseye "$of_board" python
debian arm64-trixie arm64 trixie "$of_board" python
only='linux-image-[0-9]' part='./boot/vmlinuz*'
debian kernel arm64 '' linux-image-arm64 :
only='' part=''
if command -v qemu-system-aarch64 >/dev/null; then
    echo "QEMU for a whole machine is here"
else
    debian machine "$(dpkg --print-architecture)" '' qemu-system-arm :
fi
