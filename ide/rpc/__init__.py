"""The SDK's JSON-RPC: envelope and handshake are pure, dispatch and methods move the bytes."""
