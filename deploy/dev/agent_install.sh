#!/usr/bin/env bash
# Installs the agent alone, with the extra `agent`, into an environment of its own, and sees that it runs: no package of
# the server's is there, `sallyport node` works, and `sallyport serve` says what is missing.
set -euo pipefail
cd "$(dirname "$0")/../.."

PYTHON=${PYTHON:-python3}
FOLDER=$(mktemp -d)
trap 'rm -rf "$FOLDER"' EXIT
cp -r pyproject.toml README.md LICENSE sallyport.py foundation pki policies gateway agent "$FOLDER/"
"$PYTHON" -m venv "$FOLDER/venv"
"$FOLDER/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$FOLDER[agent]"
cd / # nothing of the sources' is found from here
sallyport=$FOLDER/venv/bin/sallyport

for package in aiohttp sqlalchemy redis wasmtime opentelemetry prometheus_client; do
    if "$FOLDER/venv/bin/python" -c "import $package" 2>/dev/null; then echo "$package is installed" >&2; exit 1; fi
done
"$sallyport" node --help >/dev/null
"$FOLDER/venv/bin/python" -c 'import agent.tpm_commands, agent.renew, agent.call, agent.run'
if said=$("$sallyport" node status --directory "$FOLDER/node" 2>&1); then echo "status of no node: $said" >&2; exit 1; fi
[[ $said == *not_enrolled* ]] || { echo "status says: $said" >&2; exit 1; }
printf '[agent]\ndirectory = "%s"\n' "$FOLDER/node" >"$FOLDER/agent.toml"
if said=$("$sallyport" agent run --config "$FOLDER/agent.toml" 2>&1); then echo "no node runs: $said" >&2; exit 1; fi
[[ $said == *not_enrolled* ]] || { echo "agent run says: $said" >&2; exit 1; }
if said=$("$sallyport" serve --help 2>&1); then echo "the server is installed" >&2; exit 1; fi
[[ $said == *"sallyport[server]"* ]] || { echo "serve says: $said" >&2; exit 1; }
echo "the agent runs alone: $(du -sm "$FOLDER/venv" | cut -f1) MB on disk," \
    "$("$FOLDER/venv/bin/python" -m pip list --disable-pip-version-check 2>/dev/null | tail -n +3 | wc -l) packages"
