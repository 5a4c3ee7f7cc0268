"""The checks of the gateway before it starts anything."""

import os

import pytest

from segserve.engines import ServerError
from segserve.gateway.settings import check_run_dir


def test_run_dir_of_this_user_is_accepted(tmp_path):
    check_run_dir(tmp_path / "new" / "run")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_run_dir_of_another_user_is_rejected(tmp_path):
    os.chown(tmp_path, 12345, -1)
    with pytest.raises(ServerError, match="belongs to another user"):
        check_run_dir(tmp_path)
