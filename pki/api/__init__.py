"""Handlers of the authority's listeners."""
