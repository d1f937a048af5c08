"""Runs inside the machine and answers the calls of docs/guest-protocol.md.

It may import the standard library and `vm.guest.frames` only, and imports everything at the start, because a guest's
files may be gone later.
"""
