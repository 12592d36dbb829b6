import pytest

from bench.setting import Setting, untrained_model


@pytest.fixture(scope="session")
def setting(tmp_path_factory):
    return Setting(untrained_model(tmp_path_factory.mktemp("bench") / "base"), seed=0, full=False)
