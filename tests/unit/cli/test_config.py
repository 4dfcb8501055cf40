"""Configuration of the daemons: layers, paths, and what is refused by file and key."""

from pathlib import Path

import pytest

from edgeai.cli.config import cloud_options, edge_options
from edgeai.errors import ManifestError

SHIPPED = Path(__file__).parents[3] / "config"
EDGE = {"node": "edge1", "cloud": "nats://cloud:4222", "credentials": Path("edge1.json")}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


def written(folder: Path, text: str) -> Path:
    path = folder / "daemon.toml"
    path.write_text(text)
    return path


def test_without_anything_the_cloud_has_defaults(tmp_path):
    options = cloud_options()
    assert options.state_dir == tmp_path / "data" / "edgeai" / "cloud"
    assert (options.edges, options.port, options.nats_url) == ((), None, None)


def test_an_edge_keeps_its_state_under_its_name(tmp_path):
    assert edge_options(None, **EDGE).state_dir == tmp_path / "data" / "edgeai" / "edge1"


def test_an_option_wins_over_a_variable_and_a_variable_over_the_file(tmp_path, monkeypatch):
    file = written(tmp_path, "port = 1001\nallowed_roots = ['/file']\nedges = ['a']\n")
    monkeypatch.setenv("EDGEAI_CLOUD_PORT", "1002")
    monkeypatch.setenv("EDGEAI_CLOUD_EDGES", '["b", "c"]')
    options = cloud_options(file, port=1003)
    assert (options.port, options.edges, options.allowed_roots) == (1003, ("b", "c"), (Path("/file"),))


def test_an_option_that_is_not_given_takes_nothing_away(tmp_path):
    file = written(tmp_path, "port = 1001\nedges = ['a']\n")
    options = cloud_options(file, port=None, edges=[])
    assert (options.port, options.edges) == (1001, ("a",))


def test_relative_paths_of_a_file_refer_to_its_folder(tmp_path):
    (tmp_path / "etc").mkdir()
    file = written(
        tmp_path / "etc",
        "node = 'edge1'\ncloud = 'nats://c:1'\ncredentials = 'edge1.json'\nstate_dir = 'state'\nallowed_roots = ['data']\n",
    )
    options = edge_options(file)
    assert options.credentials == tmp_path / "etc" / "edge1.json"
    assert options.state_dir == tmp_path / "etc" / "state"
    assert options.allowed_roots == (tmp_path / "etc" / "data",)


def test_relative_paths_of_options_refer_to_the_current_folder(tmp_path):
    assert cloud_options(None, state_dir=Path("here")).state_dir == tmp_path / "here"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot = 1", "prot: unknown field"),
        ("port = 'many'", "port: "),
        ("port = 0", "port: "),
        ("edges = ['Edge 1']", "edges[0]: "),
        ("nats_url = 'http://x'", "nats_url: must be nats://host:port"),
        ("nats_url = 'nats://x:1'", "nats_url: needs coordinator_credentials, worker_credentials as well"),
        ("worker_credentials = 'x'", "worker_credentials: needs nats_url as well"),
        ("port = ", "cannot be read: Invalid value (at "),
    ],
    ids=lambda value: value[:20],
)
def test_what_is_wrong_in_a_file_is_said_by_file_and_key(tmp_path, text, said):
    file = written(tmp_path, text)
    with pytest.raises(ManifestError) as refused:
        cloud_options(file)
    assert str(refused.value).startswith(f"{file}: {said}")


def test_what_is_wrong_in_an_option_is_not_blamed_on_the_file(tmp_path):
    file = written(tmp_path, "edges = ['a']")
    with pytest.raises(ManifestError) as refused:
        cloud_options(file, edges=["B"])
    assert str(refused.value).startswith("edges[0]: ")


def test_a_list_of_the_environment_that_is_no_json_is_refused(monkeypatch):
    monkeypatch.setenv("EDGEAI_CLOUD_EDGES", "a,b")
    with pytest.raises(ManifestError, match="write a list as JSON"):
        cloud_options()


def test_a_file_that_is_missing_is_refused_by_name(tmp_path):
    with pytest.raises(ManifestError, match=r"nowhere\.toml: does not exist"):
        cloud_options(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("missing", sorted(EDGE))
def test_an_edge_needs_a_name_a_cloud_and_credentials(missing):
    with pytest.raises(ManifestError) as refused:
        edge_options(None, **{key: value for key, value in EDGE.items() if key != missing})
    assert refused.value.field == missing


def test_an_external_broker_needs_a_file_for_each_kind_of_program():
    with pytest.raises(ManifestError, match="mqtt_url: needs bridge_credentials, worker_credentials as well"):
        edge_options(None, **EDGE, mqtt_url="mqtt://127.0.0.1:1883", controller_credentials=Path("x"))


def test_the_shipped_files_are_acceptable():
    assert cloud_options(SHIPPED / "coordinator.toml").state_dir == Path("/var/lib/edgeai/cloud")
    assert edge_options(SHIPPED / "edge.toml").node == "edge1"


@pytest.mark.parametrize(("name", "read"), [("coordinator.toml", cloud_options), ("edge.toml", edge_options)])
def test_what_the_shipped_files_comment_out_is_acceptable_as_well(tmp_path, name, read):
    lines = (SHIPPED / name).read_text().splitlines()
    keys = [line.removeprefix("# ") for line in lines if line.startswith("# ") and " = " in line and '"' in line]
    given = [line for line in lines if line and not line.startswith("#")]
    options = read(written(tmp_path, "\n".join([*given, *keys])))
    assert options.worker_credentials is not None


def test_the_context_of_a_playground_is_removed_by_its_owner_only(tmp_path):
    from edgeai.settings import Context, read_context, remove_context, write_context

    path = tmp_path / "context.json"
    mine, other = Context("nats://a", "a.json"), Context("nats://b", "b.json")
    write_context(other, path)
    remove_context(mine, path)
    assert read_context(path) == other
    remove_context(other, path)
    assert not path.exists()
