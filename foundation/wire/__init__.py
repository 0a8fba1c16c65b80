"""Bytes that two parts of Sallyport must agree on, written once: parse, build, and what is signed."""
