"""A request, one file per step, in the order of its life.

`listener`, `identify`, `http1`, `normalise`, `decide`, `route`, `upstream`, `record`.
"""
