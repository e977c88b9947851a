from pathlib import Path

import pytest

from nixery.cli.outputs import check_outputs, parse_output
from nixery.errors import StorageError


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="File name too long"):
        check_outputs([parse_output(f"oci:{tmp_path}/{'a' * 300}", "latest")])
