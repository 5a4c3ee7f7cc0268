"""Segments many images: `segserve segment` and `segserve batch`.

`sources` lists the images, `target` assigns and claims the results, `results` encodes them. `run`
computes with a server or in this process. `batch` computes with `worker`s on Ray Data; it writes
label maps and a `table` to a folder or a bucket (`storage`).
"""
