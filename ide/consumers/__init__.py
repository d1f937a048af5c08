"""WebSocket front doors."""
