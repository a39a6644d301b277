#!/bin/sh
# Installs this bundle for the user who runs it: no root, nothing outside of one folder. A newer
# version is made beside the old one, tested, and takes its place by one rename.
set -eu

name='$name'
hardware='$hardware'
requirements='$requirements' # the recommended one first; none without a Python runner

usage() {
    cat <<EOF
usage: install.sh [--prefix FOLDER] [--no-python] [--runtime NAME] [--uninstall]

  --prefix FOLDER  where to (default: $$prefix)
  --no-python      only the program and the library, which need nothing
  --runtime NAME   ${runtimes}
  --uninstall      remove what was installed there
EOF
}

fail() { # exit code, what is wrong, the mend
    printf 'error: %s; %s\n' "$$2" "$$3" >&2
    exit "$$1"
}

prefix=$${XDG_DATA_HOME:-$$HOME/.local/share}/$$name
runtime=$${requirements%% *}
uninstall=
while [ $$# -gt 0 ]; do
    case $$1 in
    --prefix) prefix=$${2:-}; shift ;;
    --runtime) runtime=$${2:-}; shift ;;
    --no-python) runtime='' requirements='' ;;
    --uninstall) uninstall=yes ;;
    -h | --help) usage; exit 0 ;;
    *) fail 2 "unknown option $$1" "see install.sh --help" ;;
    esac
    [ $$# -gt 0 ] || fail 2 "an option lacks its value" "see install.sh --help"
    shift
done
case $$prefix in
/*) ;;
*) fail 2 "--prefix '$$prefix' is no absolute path" "give one that begins with /" ;;
esac

if [ -n "$$uninstall" ]; then
    [ -L "$$prefix/current" ] || fail 4 "$$prefix: nothing is installed there" "give its --prefix"
    for version in "$$prefix"/version-*; do
        rm -rf "$$version"
    done
    rm "$$prefix/current"
    rmdir "$$prefix" 2>/dev/null || echo "left alone: what else is in $$prefix"
    echo "removed from $$prefix"
    exit 0
fi

case " $$requirements " in
*" $$runtime "*) ;;
*) fail 2 "unknown runtime '$$runtime'" "choose one of: $${requirements:-none, the bundle has C alone}" ;;
esac
cd "$$(dirname "$$0")"
sha256sum --check --quiet --strict SHA256SUMS >/dev/null 2>&1 ||
    fail 3 "the bundle is damaged" "copy and unpack it again"
./classify --version >/dev/null 2>&1 ||
    fail 4 "this bundle is for $$hardware, and this is a $$(uname -m)" "make one with another --target"

digest=$$(sha256sum SHA256SUMS | cut -c1-12)
version=version-$$digest
new=$$prefix/$$version
mkdir -p "$$prefix" 2>/dev/null || fail 3 "$$prefix: cannot be made" "give another --prefix"
[ -w "$$prefix" ] || fail 3 "$$prefix: cannot be written" "give another --prefix"
same=
if [ "$$(readlink "$$prefix/current" || true)" = "$$version" ] &&
    [ "$$(cat "$$new/runtime" 2>/dev/null || echo none)" = "$$runtime" ]; then
    same=yes
fi
if [ -z "$$same" ]; then
    work=$$prefix/.new-$$$$
    trap 'rm -rf "$$work"' EXIT
    trap 'exit 130' HUP INT TERM
    mkdir -p "$$work/files"
    cp -R . "$$work/files/bundle" 2>/dev/null ||
        fail 3 "$$prefix: cannot be written" "make room, or give another --prefix"
    if [ -n "$$runtime" ]; then
        command -v python3 >/dev/null || fail 4 "there is no python3" "install it, or give --no-python"
        python3 -m venv --system-site-packages "$$work/files/venv" >"$$work/log" 2>&1 ||
            fail 4 "python3 makes no environment" "run 'sudo apt install python3-venv', or give --no-python"
        offline=
        [ -d wheels ] && offline="--no-index --find-links wheels"
        # shellcheck disable=SC2086 # two options
        "$$work/files/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
            --require-hashes --no-deps $$offline --requirement "requirements-$$runtime.txt" >"$$work/log" 2>&1 ||
            fail 4 "pip installs no $$runtime ($$(grep -m1 ERROR "$$work/log" || tail -n1 "$$work/log"))" \
                "see to the network, or make the bundle with --wheelhouse"
    fi
    printf '%s\n' "$$runtime" >"$$work/files/runtime"
    files=$$work/files
else
    files=$$new
fi

"$$files/bundle/classify" --selftest >/dev/null || fail 1 "the selftest failed here" "nothing was installed"
if [ -n "$$runtime" ]; then
    "$$files/venv/bin/python" "$$files/bundle/runner.pyz" selftest ||
        fail 1 "the selftest failed here" "nothing was installed"
fi
if [ -z "$$same" ]; then
    rm -rf "$$new" # of an installation that was cut off
    mv "$$files" "$$new"
fi
ln -s "$$version" "$$prefix/.current-$$$$"
mv -T "$$prefix/.current-$$$$" "$$prefix/current" # one rename: there is always the old or the new one
for other in "$$prefix"/version-*; do
    [ "$$other" = "$$new" ] || rm -rf "$$other"
done
if [ -n "$$same" ]; then echo "already installed, and tested again: $$prefix/current"; else echo "installed: $$prefix/current"; fi
echo "$$prefix/current/bundle/classify picture.pgm"
[ -z "$$runtime" ] || echo "$$prefix/current/venv/bin/python $$prefix/current/bundle/runner.pyz predict photo.jpg"
