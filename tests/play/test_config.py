import subprocess
import sys

import pytest

from steerlift.play.config import PlayConfig
from steerlift.records.errors import InputError


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weight": 2.5}, "--weight 2.5: expected at least 0 and at most 2.0"),
        ({"largest_weight": 0.0}, "--largest_weight 0.0: expected above 0"),
        ({"port": 70000}, "--port 70000: expected at least 1 and at most 65535"),
        ({"temperature": -1.0}, "--temperature -1.0: expected at least 0"),
        ({"sweep_completions": 0}, "--sweep_completions 0: expected at least 1"),
    ],
)
def test_what_cannot_be_used_is_refused(options, said):
    with pytest.raises(InputError) as caught:
        PlayConfig(**options)
    assert str(caught.value) == said


def test_the_options_import_neither_torch_nor_nicegui():
    code = "import sys, steerlift.play.config; assert not {'torch', 'transformers', 'nicegui'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
