"""Starting and ending processes: the server, its workers, a private Redis, signals.

What the processes do stands in `doors` and `worker`.
"""
