#!/bin/sh
# Installs this bundle for the user who runs it: no root, nothing outside of one folder but the unit
# that --service asks for. A newer version is made beside the old one, tested, and takes its place by
# one rename.
set -eu

name='$name'
hardware='$hardware'
service='$service.service'
requirements='$requirements' # the recommended one first; none without a Python runner
needed='$python' # the Python that wheels were chosen for
releases='$releases' # what has which Python

usage() {
    cat <<EOF
usage: install.sh [--prefix FOLDER] [--no-python] [--runtime NAME]
                  [--key PUBLIC.pem] [--service] [--uninstall]

  --prefix FOLDER  where to (default: $$prefix)
  --no-python      only the program and the library, which need nothing
  --runtime NAME   ${runtimes}
  --key FILE       install only what the owner of this public key has signed; this script is part
                   of that, so README.md says how to check it before it runs
  --service        also a systemd unit of this user, $$service: with a runtime it serves
                   a page on port 8080, else it says whether all is intact and right
  --uninstall      remove what was installed there, and its unit
EOF
}

fail() { # exit code, what is wrong, the mend
    printf 'error: %s; %s\n' "$$2" "$$3" >&2
    exit "$$1"
}

stopped() { # what a program said that ended, exit code, what is wrong, the mend: unless it is the disk
    case $$1 in
    *"Read-only file system"*) fail 3 "$$prefix: its disk is read-only" "see to the memory card, or give another --prefix" ;;
    *"Permission denied"*) fail 3 "$$prefix: $$(id -un) may not write there" "give another --prefix" ;;
    *"No space left"* | *"uota exceeded"*) full=yes ;;
    *) # Python tells of no reason where it makes no environment, which takes 20 MB.
        full=
        [ ! -d "$$prefix" ] || [ "$$(($$(stat -f -c '%a * %S' "$$prefix")))" -ge 20000000 ] || full=yes ;;
    esac
    [ -z "$$full" ] || fail 3 "$$prefix: its disk is full" "make room there, or give another --prefix"
    fail "$$2" "$$3" "$$4"
}

folder() { # the line of the unit; a percent sign is special there
    printf 'WorkingDirectory=%s/current/bundle\n' "$$(printf '%s' "$$prefix" | sed 's/%/%%/g')"
}

leftovers() { # what an installation left that was killed: its process is gone
    for left in "$$prefix"/.new-* "$$prefix"/.current-*; do
        kill -0 "$${left##*-}" 2>/dev/null || rm -rf "$$left"
    done
}

tested() { # whether a version is intact and computes what it should; `said` is what its tests say
    said=$$(cd "$$1/bundle" && sha256sum --check --quiet --strict SHA256SUMS 2>&1 && ./classify --selftest 2>&1) ||
        return
    [ -z "$$runtime" ] || said=$$({
        "$$1/venv/bin/python" "$$1/bundle/runner.pyz" selftest &&
            "$$1/venv/bin/python" "$$1/bundle/runner.pyz" selftest --runtime "$$runtime"
    } 2>&1)
}

data=$${XDG_DATA_HOME:-$${HOME:+$$HOME/.local/share}}
prefix=$${data:+$$data/$$name}
runtime=$${requirements%% *}
uninstall='' key='' serve='' chosen='' no_python=''
units=$${XDG_CONFIG_HOME:-$${HOME:-}/.config}/systemd/user
while [ $$# -gt 0 ]; do
    case $$1 in
    --prefix) prefix=$${2:-.}; shift ;;
    --runtime) runtime=$${2:-} chosen=yes; shift ;;
    --no-python) no_python=yes ;;
    --key) key=$${2:-}; shift ;;
    --service) serve=yes ;;
    --uninstall) uninstall=yes ;;
    -h | --help) usage; exit 0 ;;
    *) fail 2 "unknown option $$1" "see install.sh --help" ;;
    esac
    [ $$# -gt 0 ] || fail 2 "an option lacks its value" "see install.sh --help"
    shift
done
case $$prefix in
/*) ;;
'') fail 2 "there is no home folder (HOME is not set)" "give --prefix" ;;
*) fail 2 "--prefix '$$prefix' is no absolute path" "give one that begins with /" ;;
esac

if [ -n "$$uninstall" ]; then
    leftovers
    [ -L "$$prefix/current" ] || fail 4 "$$prefix: nothing is installed there" "give its --prefix"
    if grep -qsxF "$$(folder)" "$$units/$$service"; then # not that of another prefix
        systemctl --user disable --now "$$service" >/dev/null 2>&1 || true
        rm "$$units/$$service"
        systemctl --user daemon-reload >/dev/null 2>&1 || true
    fi
    for version in "$$prefix"/version-*; do
        rm -rf "$$version"
    done
    rm "$$prefix/current" # the last: until then it can be given again
    rmdir "$$prefix" 2>/dev/null || echo "left alone: what else is in $$prefix"
    echo "removed from $$prefix"
    exit 0
fi

if [ -n "$$no_python" ]; then
    [ -z "$$chosen" ] || fail 2 "--no-python and --runtime" "leave out one of them"
    runtime='' requirements=''
fi
case " $$requirements " in
*" $$runtime "*) ;;
*) fail 2 "unknown runtime '$$runtime'" "choose one of: $${requirements:-none, the bundle has C alone}" ;;
esac
if [ -n "$$serve" ]; then
    systemctl --user show-environment >/dev/null 2>&1 ||
        fail 4 "no systemd of user $$(id -un) answers" "log in as that user, or leave out --service"
elif [ -f "$$units/$$service" ] && grep -qxF "$$(folder)" "$$units/$$service"; then
    serve=again # that of this prefix: it is to serve the new version
fi
if [ -n "$$serve" ]; then
    { mkdir -p "$$units" && [ -w "$$units" ]; } 2>/dev/null ||
        fail 3 "$$units: cannot be written" "see to its owner, or leave out --service"
fi
if [ -n "$$key" ]; then
    command -v openssl >/dev/null || fail 4 "there is no openssl, which --key needs" "run 'sudo apt install openssl'"
    [ -r "$$key" ] || fail 4 "$$key: cannot be read" "give the public key of the bundle's maker"
    key=$$(realpath "$$key")
fi
cd "$$(dirname "$$0")"
if [ -n "$$key" ]; then
    [ -f SHA256SUMS.sig ] || fail 3 "the bundle is not signed (no SHA256SUMS.sig)" "get a signed one, or leave out --key"
    openssl pkeyutl -verify -pubin -inkey "$$key" -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig >/dev/null 2>&1 ||
        fail 3 "SHA256SUMS.sig is no signature by the owner of $$key" "do not use this bundle, or give its maker's own key"
fi
sha256sum --check --quiet --strict SHA256SUMS >/dev/null 2>&1 ||
    fail 3 "the bundle is damaged" "copy and unpack it again"
# From 126 on it cannot be run, or a signal ended it: an instruction that the processor lacks.
[ -x classify ] || # its mode, or its disk's: noexec
    fail 3 "no program may run in $$PWD" "unpack the bundle by tar, below your home folder"
./classify --selftest >/dev/null 2>&1 || [ $$? -lt 126 ] ||
    fail 4 "this bundle is for $$hardware, and this is a $$(uname -m)" "make one with another --target"

if [ -n "$$runtime" ]; then
    command -v python3 >/dev/null || fail 4 "there is no python3" "install it, or give --no-python"
    # -I: a module that lies here besides what was checked is not imported.
    here=$$(python3 -I -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    case $$here in
    2.* | 3.? | 3.10)
        fail 4 "the runner needs Python 3.11 or newer, and this is $$here" \
            "use Raspberry Pi OS bookworm or newer, or give --no-python" ;;
    esac
    if [ "$$here" != "$$needed" ] && { [ -d wheels ] || [ "$$runtime" = tflite-runtime ]; }; then
        mend='choose another --runtime'
        [ ! -d wheels ] || mend='make the bundle without --wheelhouse'
        for pair in $$releases; do
            [ "$${pair%:*}" != "$$here" ] || mend="make the bundle with --os $${pair#*:}"
        done
        fail 4 "the wheels of $$runtime are for Python $$needed, and this is $$here" \
            "$$mend, or give --no-python"
    fi
fi

version=version-$$(sha256sum SHA256SUMS | cut -c1-12)-$${runtime:-c}
said=$$(mkdir -p "$$prefix" 2>&1) || stopped "$$said" 3 "$$prefix: cannot be made" "give another --prefix"
leftovers
work=$$prefix/.new-$$$$
link=$$prefix/.current-$$$$
trap 'rm -rf "$$work" "$$link"' EXIT
trap 'echo interrupted >&2; exit 5' HUP INT TERM
same=
installed=$$(readlink "$$prefix/current" || true)
case $$installed in
"$$version" | "$$version.again")
    if tested "$$prefix/$$installed"; then
        same=yes version=$$installed
    elif [ "$$installed" = "$$version" ]; then # damaged: a sound one takes its place
        version=$$version.again
    fi ;;
esac
new=$$prefix/$$version
if [ -z "$$same" ]; then
    files=$$work/files
    # What pip unpacks on its way is there, too: /tmp may be memory, and small.
    export TMPDIR="$$work/tmp"
    said=$$({ mkdir "$$work" && mkdir "$$files" "$$TMPDIR" && cp -R . "$$files/bundle"; } 2>&1) ||
        stopped "$$said" 3 "$$prefix: cannot be written" "give another --prefix"
    [ -x "$$files/bundle/classify" ] || fail 3 "$$prefix: no program may run there" "give another --prefix"
    if [ -n "$$runtime" ]; then
        said=$$(python3 -I -m venv --system-site-packages "$$files/venv" 2>&1) ||
            stopped "$$said" 4 "python3 makes no environment" "run 'sudo apt install python3-venv', or give --no-python"
        offline=
        [ -d wheels ] && offline="--no-index --find-links wheels"
        # shellcheck disable=SC2086 # two options
        said=$$("$$files/venv/bin/python" -I -m pip install --quiet --disable-pip-version-check --no-cache-dir \
            --require-hashes --no-deps $$offline --requirement "requirements-$$runtime.txt" 2>&1) ||
            stopped "$$said" 4 "pip installs no $$runtime ($$(printf '%s\n' "$$said" | grep -m1 ERROR || printf '%s\n' "$$said" | tail -n1))" \
                "see to the network, or make the bundle with --wheelhouse"
    fi
    if ! tested "$$files"; then
        [ -z "$$runtime" ] || "$$files/venv/bin/python" -I -c 'import numpy' 2>/dev/null ||
            fail 4 "there is no NumPy" "run '$numpy', or give --no-python"
        last=$$(printf '%s\n' "$$said" | tail -n1)
        fail 1 "the selftest failed here$${last:+ ($$last)}" "nothing was installed"
    fi
    why=$$(ln -s "$$version" "$$link" 2>&1) ||
        stopped "$$why" 3 "$$prefix: cannot be written" "give another --prefix"
    rm -rf "$$new" # of an installation that was cut off
    mv "$$files" "$$new"
    mv -T "$$link" "$$prefix/current" # one rename: there is always the old or the new one
fi
[ -z "$$runtime" ] || printf '%s\n' "$$said"
for other in "$$prefix"/version-*; do
    [ "$$other" = "$$new" ] || rm -rf "$$other"
done
if [ -n "$$serve" ]; then
    unit=$$service
    [ -z "$$runtime" ] || unit=serve.service
    while IFS= read -r line; do
        case $$line in WorkingDirectory=*) line=$$(folder) ;; esac
        printf '%s\n' "$$line"
    done <"$$new/bundle/$$unit" >"$$units/.$$service"
    mv "$$units/.$$service" "$$units/$$service"
    # One that its owner has disabled is not started by an update.
    if [ "$$serve" = yes ] || systemctl --user is-enabled --quiet "$$service" 2>/dev/null; then
        for order in daemon-reload "enable $$service" "restart $$service"; do
            # shellcheck disable=SC2086 # two words
            systemctl --user $$order 2>/dev/null ||
                fail 1 "$$service did not start" "see 'systemctl --user status $$service'"
        done
        echo "service: $$service; to have it without a login: loginctl enable-linger"
    fi
fi
if [ -n "$$same" ]; then echo "already installed, and tested again: $$prefix/current"; else echo "installed: $$prefix/current"; fi
echo "$$prefix/current/bundle/classify picture.pgm"
[ -z "$$runtime" ] || echo "$$prefix/current/venv/bin/python $$prefix/current/bundle/runner.pyz predict photo.jpg"
