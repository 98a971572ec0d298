"""The log of a run, where there is no room for it."""

import logging
from pathlib import Path

import pytest
from rich.console import Console

from harness.exceptions import RunDirError
from harness.supervised.logs import logging_to


def test_a_log_for_which_there_is_no_room_hides_no_error(capfd):
    with pytest.raises(RunDirError, match="make room"), logging_to(Path("/dev/full"), Console()):
        logging.getLogger("harness.test").info("lost")
        raise RunDirError("metrics.jsonl: cannot be written: make room")
    assert capfd.readouterr().err == ""
