"""Runs an archive's handler without TorchServe, with the same HTTP contract. The engines `local`
and `ray` share it.

`loading`, `context`, `messages` and `batch` run in worker processes. They must not import
`segserve.runtime`, because a worker uses the copy in its archive.
"""
