#!/bin/sh
# Gets a bare Debian as far as a python3 that can run vm/host/install.py; that one does the rest.
set -eu
cd "$(dirname "$0")/../.."

say() { printf '%s\n' "atoll: $*" >&2; }

if [ "$(id -u)" != 0 ]; then
    say "this needs root (machines need network namespaces, QEMU and service users): run it as root, or install sudo"
    exit 1
fi
if ! command -v apt-get >/dev/null; then
    say "this host has no apt-get: Atoll installs itself on Debian 12 and 13 only (others are untested)"
    exit 1
fi
if ! command -v python3 >/dev/null || ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
    say "installing python3 and its venv module"
    log=$(mktemp)
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv; } >"$log" 2>&1; then
        tail -n 3 "$log" >&2
        say "could not install python3: is the network up, and is there room on the disk? (whole output: $log)"
        exit 1
    fi
    rm -f "$log"
fi
exec python3 vm/host/install.py "$@"
