"""The data plane and the wiring. `orchestrator.py` leads; `proxy/` holds one file per step of a request."""
