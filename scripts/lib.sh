# shellcheck shell=bash
# Copyright: the mage.lxd contributors
# GNU General Public License v3.0-or-later (see LICENSE)
# Sourced by every script: where the checkout is, how to speak, how to set up.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV="$ROOT/.venv"
export ROOT VENV
# Root by su lacks its own folders, and a login may bring a language that is not installed, which Ansible refuses.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" LC_ALL=C.UTF-8
export ANSIBLE_COLLECTIONS_PATH="$ROOT/.tree"
export ANSIBLE_CONFIG="$ROOT/ansible.cfg"

say() { printf '\n==> %s\n' "$*"; }
note() { printf '    %s\n' "$*"; }
fail() { printf '\nerror: %s\n' "$*" >&2; exit 1; }

need_root() { [ "$(id -u)" = 0 ] || fail "$(basename "$0") installs packages and manages the firewall: run it as root"; }

# apt COMMAND...: apt-get, which waits while a new machine updates itself, and repairs what an interrupted one has left.
apt() {
    local answer try
    for ((try = 1; ; try++)); do
        if answer=$(DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 "$@" 2>&1); then return 0; fi
        case $answer in
            *"dpkg --configure -a"*) DEBIAN_FRONTEND=noninteractive dpkg --configure -a >/dev/null 2>&1 || true ;;
            *"Could not get lock"*) [ "$try" -gt 1 ] || note "Waiting for another apt"; sleep 5 ;;
            *) break ;;
        esac
        [ "$try" -lt 60 ] || break
    done
    fail "apt-get $* failed: $(tail -n 5 <<<"$answer")"
}

# apt_install PACKAGE...: installs only those that are missing.
apt_install() {
    local missing=() package answer
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    [ "${#missing[@]}" = 0 ] && return 0
    say "Installing Debian packages: ${missing[*]}"
    apt update
    apt install -y --no-install-recommends "${missing[@]}"
}

# make_tree: a collection is only found under ansible_collections/NAMESPACE/NAME.
make_tree() {
    mkdir -p "$ROOT/.tree/ansible_collections/mage"
    ln -sfn "$ROOT" "$ROOT/.tree/ansible_collections/mage/lxd"
}

# make_venv REQUIREMENTS_FILE: brings .venv to that file; does nothing when it is there already.
make_venv() {
    local file="$ROOT/$1" stamp answer
    stamp="$VENV/.$1.sha256"
    apt_install python3 python3-venv python3-apt
    # pip comes last: without it, an earlier run was interrupted.
    if [ ! -x "$VENV/bin/pip" ]; then
        say "Making a virtual environment in .venv"
        /usr/bin/python3 -m venv "$VENV" || fail "python3 -m venv failed"
    fi
    if ! (cd "$ROOT" && sha256sum --status -c "$stamp") 2>/dev/null; then
        say "Installing Python packages of $1 into .venv"
        answer=$("$VENV/bin/pip" install -q --disable-pip-version-check -r "$file" 2>&1) ||
            fail "pip install -r $1 failed: $answer"
        (cd "$ROOT" && sha256sum requirements*.txt >"$stamp")
    fi
    export PATH="$VENV/bin:$PATH"
}
