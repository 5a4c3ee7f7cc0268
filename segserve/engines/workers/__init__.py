"""Runs an archive's handler without TorchServe, for the engines `local` and `ray`.

`loading` and `messages` run in worker processes. They must not import `segserve.runtime`, because a
worker uses the copy in its archive.
"""
