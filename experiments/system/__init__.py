"""The ground floor: what the process runs on, and how it speaks to its user.

The error that a command tells in one line, what a user types and is told, signals, memory, the mesh
of devices, and several processes that train along. It imports nothing of the other rooms. Begin
with `errors`.
"""
