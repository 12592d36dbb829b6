import json
import platform
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version

from steerlift.records import provenance as provenance_module
from steerlift.records.provenance import package_version, provenance


def test_a_result_says_what_it_was_run_on(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "--output_dir", "a folder", "--seed", "3"])
    record = provenance(model="some/model", seed=3, device="cpu")
    date = datetime.fromisoformat(record.pop("date"))
    assert timedelta(0) <= datetime.now(UTC) - date < timedelta(minutes=1)
    libraries = record.pop("libraries")
    assert set(libraries) == {"torch", "transformers", "tokenizers", "math-verify", "numpy", "scipy"}
    assert all(libraries[name] == version(name) for name in libraries)
    assert record == {
        "steerlift": version("steerlift"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "model": "some/model",
        "seed": 3,
        "device": "cpu",
        "command": "main.py --output_dir 'a folder' --seed 3",
    }


def test_the_place_of_an_installed_program_is_not_told(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/steerlift", "train"])
    assert provenance()["command"] == "steerlift train"


def test_what_is_not_installed_is_left_out(monkeypatch):
    def found(name: str) -> str:
        if name in ("steerlift", "scipy"):
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(provenance_module, "version", found)
    assert package_version() == "0+unknown"
    record = provenance()
    assert record["steerlift"] == "0+unknown"
    assert "scipy" not in record["libraries"]
    assert json.loads(json.dumps(record)) == record


def test_it_reads_versions_without_importing_anything():
    code = (
        "import sys; from steerlift.records.provenance import provenance; record = provenance();"
        "print(sorted({'torch', 'transformers', 'numpy', 'scipy'} & set(sys.modules)), sorted(record['libraries'])[-2:])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[] ['torch', 'transformers']\n"
