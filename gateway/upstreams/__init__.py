"""Upstream pools: which address a request goes to, which are out of service and why, and what may be tried again.

`balance`, `health`, `outlier`, `budget`, `breaker` and `answers` judge values; `pool` keeps what they judge and does
what they say; `gateway.proxy.upstream` dials.
"""
