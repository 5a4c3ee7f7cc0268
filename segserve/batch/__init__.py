"""The work behind `segserve batch`: any number of images -> label maps and a table, on Ray Data.

`sources` lists the images lazily, `job` says what a target holds and whether it may go on, `listing` cuts the images
into blocks, `worker` turns a block into label maps and one part of the `table`, `cluster` starts or joins Ray, and
`run` puts the blocks that are left through a pool of workers. `storage` is all that knows where files are.

A block is finished when its part of the table is there, which is written last, whole, under a name that follows from
the block alone. So a job can be killed at any moment, and a block that is done twice is still there once.
"""
