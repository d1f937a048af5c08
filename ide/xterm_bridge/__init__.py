"""Carries one terminal's bytes between xterm.js and any byte stream; knows no Django and no machine.

`messages.py` is the wire format, `flow.py` the accounting of bytes under way (both pure), `session.py` moves the bytes.
The other half is `frontend/src/xterm_bridge`; README.md beside this file is the contract of both.
"""
