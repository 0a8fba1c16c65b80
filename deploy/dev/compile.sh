#!/usr/bin/env bash
# Makes build/compiled: this tree as it stands, with the request path compiled (setup.py). Whoever puts it on PYTHONPATH,
# or works in it, runs the compiled one. What did not change is not compiled again.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=$PWD/.venv/bin/python
OUT=build/compiled

"$PYTHON" -c 'import Cython, setuptools; assert int(setuptools.__version__.split(".")[0]) >= 77' 2>/dev/null ||
    "$PYTHON" -m pip install --quiet --disable-pip-version-check 'cython>=3.1' 'setuptools>=77'
mkdir -p "$OUT/build"
# The sources of the last time go, so that none stays that is no more; what was made of them stays.
find "$OUT" -type f ! -name '*.c' ! -name '*.so' ! -path "$OUT/build/*" -delete
git ls-files --cached --others --exclude-standard -z |
    while IFS= read -r -d '' file; do [ ! -e "$file" ] || printf '%s\0' "$file"; done |
    tar --create --null --files-from=- | tar --extract --directory "$OUT"
ln -sfn ../../.venv "$OUT/.venv"
cd "$OUT"
SALLYPORT_COMPILED=1 CFLAGS="${CFLAGS:--O2}" "$PYTHON" setup.py --quiet build_ext --inplace --parallel "$(nproc)" \
    >build/compile.log 2>&1 || { tail -30 build/compile.log >&2; exit 1; }
