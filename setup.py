"""What pyproject.toml cannot say: with `SALLYPORT_COMPILED=1` the modules that every request runs through are built as
native code by Cython, from the same source and beside it (docs/adr/0008-the-request-path-may-be-compiled.md). Without
it nothing is built, and neither Cython nor a C compiler is needed.

    pip install cython setuptools && SALLYPORT_COMPILED=1 pip install --no-build-isolation '.[server]'
"""

from __future__ import annotations

import os

from setuptools import setup

REQUEST_PATH = (
    "foundation.clock",
    "foundation.decisionlog.ids",
    "foundation.decisionlog.line",
    "foundation.decisionlog.log",
    "foundation.decisionlog.segments",
    "foundation.randomness",
    "foundation.telemetry",
    "foundation.trace",
    "foundation.trusttime",
    "gateway.answers",
    "gateway.metrics",
    "gateway.proxy.connection",
    "gateway.proxy.decide",
    "gateway.proxy.deciding",
    "gateway.proxy.exchange",
    "gateway.proxy.http1",
    "gateway.proxy.http1_connection",
    "gateway.proxy.http1_write",
    "gateway.proxy.normalise",
    "gateway.proxy.overload",
    "gateway.proxy.record",
    "gateway.proxy.route",
    "gateway.proxy.services",
    "gateway.proxy.turns",
    "gateway.proxy.upstream",
    "gateway.proxy.upstream_connection",
    "gateway.standing",
    "gateway.streams.registry",
    "gateway.upstreams.endpoint",
    "gateway.upstreams.pool",
    "policies.cache",
    "policies.cached",
    "policies.model",
    "policies.projector",
    "policies.staleness",
)
# Annotations stay comments: what a value is, is seen when it is used, as the interpreter sees it.
DIRECTIVES = {"language_level": 3, "annotation_typing": False, "binding": True}


def compiled() -> list[object]:
    """The extension modules."""
    from Cython.Build import cythonize  # noqa: PLC0415  # there is none where nothing is compiled
    from setuptools import Extension  # noqa: PLC0415

    extensions = [Extension(name, [name.replace(".", "/") + ".py"]) for name in REQUEST_PATH]
    made: list[object] = cythonize(extensions, compiler_directives=DIRECTIVES, nthreads=os.cpu_count() or 1)
    return made


if __name__ == "__main__":
    setup(ext_modules=compiled() if os.environ.get("SALLYPORT_COMPILED") == "1" else [])
