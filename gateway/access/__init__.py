"""The access log: one line for each request that ended, for people and for programs that read web servers' logs."""
