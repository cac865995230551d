"""The configuration of an outside package names options, never files or folders beyond its own."""

import sys

import pytest

from offbench.bench import hydra
from offbench.cli import main

CACHED = (hydra.options, hydra.read_option, hydra.compose_conf)
SUITE = "id: {id}\nversion: 1\nmethods: [bc]\ntasks: [offbench/hopper/medium-replay-v0]\n"
OPTIONS = {
    "suite/up": "defaults:\n  - ../../../../secret@_here_\n" + SUITE.format(id="up"),
    "suite/root": "defaults:\n  - /../../../secret@_here_\n" + SUITE.format(id="root"),
    "suite/absolute": "defaults:\n  - {root}/secret@_here_\n" + SUITE.format(id="absolute"),
    "suite/broken": "id: [unclosed\n",
    "suite/climbs": SUITE.format(id="'../../climbs'"),
}


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder with an installed package of configuration, and beside it what it must not read."""
    (tmp_path / "secret.yaml").write_text("token: canary-of-a-file\n")
    info = tmp_path / "site/someconf-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: someconf\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[offbench.conf]\nsomeconf = someconf.conf\n")
    for name, text in OPTIONS.items():
        path = tmp_path / "site/someconf/conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.replace("{root}", str(tmp_path)))
        (path.parent / "__init__.py").touch()
    for folder in ("", "conf"):
        (tmp_path / "site/someconf" / folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    for one in CACHED:
        one.cache_clear()
    yield tmp_path
    for one in CACHED:
        one.cache_clear()
    for name in [n for n in sys.modules if n.partition(".")[0] == "someconf"]:
        del sys.modules[name]


def test_a_yaml_that_names_a_file_beyond_its_package_is_refused_in_one_line(site, capsys):
    wanted = {
        "up": "names suite/../../../../secret, outside the configuration",
        "root": "names ../../../secret, outside the configuration",
        "absolute": "its yaml cannot be read",
        "broken": "its yaml cannot be read",
    }
    for name, words in wanted.items():
        assert main(["plan", f"suite={name}", "results=r"]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1 and "canary" not in error, error
    assert not (site / "r").exists()


def test_a_suite_that_calls_itself_a_path_is_refused(site, capsys):
    before = sorted(site.rglob("*"))
    assert main(["bench", "suite=climbs", "method.hidden=[4]", "results=a/b/r"]) == 2
    assert "unknown suite '../../climbs': did you mean 'climbs'?" in capsys.readouterr().err
    new = [p for p in set(site.rglob("*")) - set(before) if "__pycache__" not in p.parts]
    assert not new
