"""The file of latencies: what was put in comes out, whoever else writes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from asvit_plugin.costs import Latency, LatencyCache, LatencyKey

KEY = LatencyKey("vit 1a", (3, 8, 8), "some CPU", "eager", "float32", 2, 1, "wall", ("torch 2.15.0", "timm 1.0.31"))
LATENCY = Latency(KEY, 0.25, 0.2, 0.3, 40, 1.01, 1024, "", (0.25, 0.26))
WRITER = """
import sys
from dataclasses import replace
from asvit_plugin.costs import Latency, LatencyCache, LatencyKey
key = LatencyKey("vit 1a", (3, 8, 8), "some CPU", "eager", "float32", 2, 1, "wall", ("torch 2.15.0",))
cache = LatencyCache(sys.argv[1])
for batch in range(12):
    cache.put(Latency(replace(key, device=sys.argv[2], batch=batch), 0.25, 0.2, 0.3, 40, 1.0))
"""


def test_round_trip(tmp_path: Path) -> None:
    cache = LatencyCache(tmp_path / "folder" / "latency.json")
    assert cache.get(KEY) is None
    assert cache.latencies() == []
    other = replace(LATENCY, key=replace(KEY, batch=4), peak_memory=None, no_memory="not asked for")
    cache.put(LATENCY, other)
    assert LatencyCache(cache.path).get(KEY) == LATENCY
    assert cache.get(other.key) == other
    cache.put(replace(LATENCY, median=0.5))
    assert cache.get(KEY).median == 0.5
    assert len(cache.latencies()) == 2


def test_it_lies_in_the_users_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    LatencyCache().put(LATENCY)
    assert LatencyCache(tmp_path / "asvit_plugin" / "latency.json").get(KEY) == LATENCY


@pytest.mark.parametrize("versions", [("torch 2.16.0", "timm 1.0.31"), (*KEY.versions, "onnxruntime 1.31.1")])
def test_other_versions_are_not_used(tmp_path: Path, versions: tuple[str, ...]) -> None:
    cache = LatencyCache(tmp_path / "latency.json")
    cache.put(LATENCY)
    assert cache.get(replace(KEY, versions=versions)) is None


def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in ("one", "two")]
    assert [writer.wait() for writer in writers] == [0, 0]
    found = {(each.key.device, each.key.batch) for each in LatencyCache(path).latencies()}
    assert found == {(name, batch) for name in ("one", "two") for batch in range(12)}


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"format": 7, "latencies": []}', "latency.json has format 7, and this version reads 1 and 2"),
        ('{"format": 1, "latencies": [{"median": 1}]}', "latency.json cannot be read .KeyError: 'key'.; delete it"),
        ('{"format": 1, "lat', "latency.json cannot be read .JSONDecodeError: .*; delete it"),
        ("[]", "latency.json cannot be read .TypeError: .*; delete it"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_and_kept(tmp_path: Path, text: str, message: str) -> None:
    cache = LatencyCache(tmp_path / "latency.json")
    cache.path.write_text(text)
    with pytest.raises(ValueError, match=message):
        cache.get(KEY)
    with pytest.raises(ValueError, match=message):
        cache.put(LATENCY)
    assert cache.path.read_text() == text


def test_the_file_is_plain_json(tmp_path: Path) -> None:
    cache = LatencyCache(tmp_path / "latency.json")
    cache.put(LATENCY)
    table = json.loads(cache.path.read_text())
    assert table["format"] == 2
    assert table["latencies"][0]["key"]["model"] == "vit 1a"
