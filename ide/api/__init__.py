"""REST: `/api/v1/` for pages and scripts, and the few plain HTTP calls of the SDKs."""
