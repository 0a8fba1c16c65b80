"""Every decision on record: bounded segments of JSON lines, found again by decision ID."""
