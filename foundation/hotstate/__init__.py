"""State that refuses when it is absent: nonces, sessions, presence, rate counters. Losing it never widens trust."""
