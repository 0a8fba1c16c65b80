"""The operators' side of a gateway: who may call an API, and what a gateway tells of itself."""
