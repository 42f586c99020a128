"""What a store holds, what it can spare, what is damaged: on a folder and on a bucket."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from orchestrator.cli.store import store_app
from orchestrator.core.errors import StoreError
from orchestrator.core.stage import Stage
from orchestrator.core.text import size_text
from orchestrator.home import Home
from orchestrator.plan.plan import Plan, make_plan
from orchestrator.store.sealed import seal
from orchestrator.store.store import Record, Store
from orchestrator.sweepfile.load import parse
from orchestrator.upkeep.damage import verify
from orchestrator.upkeep.inventory import use_of
from orchestrator.upkeep.waste import DAY_S, Limits, Waste, delete, find_waste, seconds

pytest_plugins = ["tests.integration.s3_server"]

S3 = pytest.param("s3", marks=pytest.mark.integration)


@pytest.fixture(params=["folder", S3])
def store(request: pytest.FixtureRequest, tmp_path: Path, calls: object) -> Store:
    return Store(request.getfixturevalue("s3") if request.param == "s3" else tmp_path / "store")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def commit(store: Store, stage: Stage) -> Record:
    names = ["weights.safetensors"] if stage.is_model else ["images.parquet"]
    with store.scratch() as folder:
        for name in names:
            (folder / name).write_text(f"{name} of {stage.key}")
        files = {name: folder / name for name in names}
        return store.commit(stage, files, {"a": 1.0}, "now", 2.0, {})


def fill(
    store: Store, text: str, name: str, but: Callable[[Stage], bool] = lambda _: False
) -> Plan:
    """Run a sweep, as far as the store can tell."""
    sweep = parse(text.replace("name: small", f"name: {name}"), None, ())
    plan = make_plan(sweep)
    store.put_sweep(name, {"sweep": sweep.canonical(), "source": None})
    for stage in plan.stages:
        if stage.kind != "base" and not but(stage):
            commit(store, stage)
    return plan


def later() -> float:
    return time.time() + 2 * DAY_S


def kinds(found: list[Waste]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for waste in found:
        counts[waste.what] = counts.get(waste.what, 0) + len(waste.entries)
    return counts


def paths(store: Store) -> set[str]:
    folders = ("records", "objects", "sweeps", "checkpoints", "heads", "leases", "scratch")
    return {entry.path for folder in folders for entry in store.files.walk(folder)}


def test_a_sound_store_has_nothing_to_spare(store: Store, home: Home, small: str) -> None:
    fill(store, small, "small")
    assert find_waste(store, home, Limits(), later) == []


def leave_behind(store: Store) -> set[str]:
    """What killed attempts and heads leave; the paths."""
    found = {
        "objects/0123456789abcdef-00000000/weights.safetensors",
        "scratch/tmp1/half",
        "records/.0123",
        "heads/gone.json",
        "leases/0123456789abcdef/gone",
        "checkpoints/0123456789abcdef/train/5/tensors.safetensors",
    }
    if not store.files.is_local:
        found = {path for path in found if "/." not in path and "scratch" not in path}
    for path in found:
        store.files.write(path, "x")
    return found


def test_what_killed_attempts_left_is_found_and_deleted(
    store: Store, home: Home, small: str
) -> None:
    fill(store, small, "small")
    sound = paths(store)
    left = leave_behind(store)
    assert find_waste(store, home, Limits()) == []  # too young
    found = find_waste(store, home, Limits(), later)
    assert {entry.path for waste in found for entry in waste.entries} == left
    assert sum(delete(store, waste) for waste in found) == len(left)
    assert paths(store) == sound


def test_what_a_record_names_by_now_is_not_deleted(store: Store, home: Home, small: str) -> None:
    plan = fill(store, small, "small")
    stage = next(stage for stage in plan.stages if stage.kind == "unlearn")
    text = store.files.read(f"records/{stage.key}.json")
    store.files.delete(f"records/{stage.key}.json")
    found = find_waste(store, home, Limits(), later)
    assert kinds(found) == {"unreferenced objects": 1}
    store.files.write(f"records/{stage.key}.json", text or "")
    assert [delete(store, waste) for waste in found] == [0]
    record = store.get(stage)
    assert record is not None
    assert store.faults(record) == []


def test_objects_of_a_record_that_cannot_be_read_stay(store: Store, home: Home, small: str) -> None:
    plan = fill(store, small, "small")
    store.files.write(f"records/{plan.stages[-1].key}.json", "{")
    assert find_waste(store, home, Limits(), later) == []
    assert plan.stages[-1].key in set(store.keys())  # looking changes nothing


def put_checkpoint(store: Store, digest: str) -> None:
    with store.scratch() as folder:
        (folder / "t").write_text("state")
        store.put_checkpoint(digest, 1, folder / "t", {})


def test_training_states_stay_while_a_sweep_goes_on_from_them(
    store: Store, home: Home, small: str
) -> None:
    def is_last(stage: Stage) -> bool:
        return stage.kind == "finetune" and stage.steps == 2 and stage.seed == 0

    plan = fill(store, small, "small", but=is_last)
    finetunes = [stage for stage in plan.stages if stage.kind == "finetune"]
    unfinished = {s.trajectory for s in finetunes if is_last(s)}
    finished = {s.trajectory for s in finetunes} - unfinished
    for trajectory in unfinished | finished:
        put_checkpoint(store, trajectory or "")
    found = find_waste(store, home, Limits(), later)
    assert kinds(found) == {"checkpoints": 2 * len(finished)}
    kept = {(trajectory or "")[:16] for trajectory in unfinished}
    assert all(e.path.split("/")[1] not in kept for w in found for e in w.entries)


def test_training_states_that_are_to_be_kept_stay(store: Store, home: Home, small: str) -> None:
    plan = fill(store, f"{small}keep: [unlearned, checkpoints]\n", "small")
    put_checkpoint(store, next(s.trajectory for s in plan.stages if s.trajectory) or "")
    assert find_waste(store, home, Limits(), later) == []


def test_claims_of_a_head_that_lives_stay(store: Store, home: Home) -> None:
    store.files.write("leases/0123456789abcdef/me", "")
    assert kinds(find_waste(store, home, Limits(), later)) == {"claims of dead heads": 1}
    store.files.write("heads/me.json", json.dumps({"sweep": "small"}))
    assert find_waste(store, home, Limits(1e-9)) != []

    def soon() -> float:
        return time.time() + DAY_S / 2

    assert find_waste(store, home, Limits(), soon) == []


def test_a_sweep_is_given_up_and_what_others_use_stays(
    store: Store, home: Home, small: str
) -> None:
    both = fill(store, small, "one")
    other = fill(store, small.replace("seeds: 2", "seeds: 1"), "two")
    shared = {stage.key for stage in other.stages}
    found = find_waste(store, home, Limits(sweep="one"), later)
    for waste in found:
        delete(store, waste)
    assert store.keys() == shared - {both.root.key}
    assert store.sweeps() == ["two"]
    assert find_waste(store, home, Limits(), later) == []
    assert all(verify(store, key, False) is None for key in sorted(store.keys()))


def test_a_sweep_is_not_given_up_while_it_runs_or_another_is_unknown(
    store: Store, home: Home, small: str
) -> None:
    fill(store, small, "one")
    with pytest.raises(StoreError, match=r"no sweep of this store is called 'none'.*one"):
        find_waste(store, home, Limits(sweep="none"))
    store.files.write("heads/me.json", seal("heads/me.json", {"sweep": "one"}))
    with pytest.raises(StoreError, match="'one' is running"):
        find_waste(store, home, Limits(sweep="one"))
    store.files.write("heads/me.json", "x")
    with pytest.raises(StoreError, match=r"heads/me\.json is damaged"):
        find_waste(store, home, Limits(sweep="one"))
    store.files.delete("heads/me.json")
    store.put_sweep("odd", {"sweep": {"name": "odd"}, "source": None})
    with pytest.raises(StoreError, match="because 'odd' cannot be planned here"):
        find_waste(store, home, Limits(sweep="one"))


def test_weights_are_dropped_and_their_records_stay(store: Store, home: Home, small: str) -> None:
    plan = fill(store, small, "small")
    models = [stage for stage in plan.stages if stage.is_model and stage.kind != "base"]
    found = find_waste(store, home, Limits(weights=True), later)
    assert kinds(found) == {"weights": len(models)}
    assert all(delete(store, waste) > 0 for waste in found)
    for stage in plan.stages:
        if stage.kind != "base":
            record = store.get(stage)
            assert record is not None
            assert record.metrics == {"a": 1.0}
            assert set(record.objects) == (set() if stage.is_model else {"images.parquet"})
    assert find_waste(store, home, Limits(weights=True), later) == []


# What is damaged


def test_damage_is_found_and_set_aside(store: Store, small: str) -> None:
    plan = fill(store, small, "small")
    hurt = [stage for stage in plan.stages if stage.kind == "sample"]
    records = [store.get(stage) for stage in hurt]
    assert records[0] and records[1]
    blob = records[0].objects["images.parquet"]
    store.files.write(blob.path, "y" * blob.size_bytes)
    at = f"records/{hurt[1].key}.json"
    store.files.write(at, seal(at, records[1].to_json() | {"seed": 77}))
    store.files.write(f"records/{hurt[2].key}.json", "{")
    expected = {
        hurt[0].key: "SHA-256",
        hurt[1].key: "its digest is not that of its identity",
        hurt[2].key: "Expecting",
    }
    for repair in (False, True):
        damaged = [d for key in sorted(store.keys()) if (d := verify(store, key, repair))]
        assert {d.key for d in damaged} == expected.keys()
        assert all(expected[d.key] in d.faults[0] for d in damaged)
        assert all(store.files.exists(f"{d.folder}/reason.json") == repair for d in damaged)
    assert all(verify(store, key, False) is None for key in sorted(store.keys()))
    assert store.keys() == {s.key for s in plan.stages if s.kind != "base"} - expected.keys()


def test_use_by_kind_and_by_sweep(store: Store, home: Home, small: str) -> None:
    one = fill(store, small, "one")
    two = fill(store, small.replace("seeds: 2", "seeds: 1"), "two")
    leave_behind(store)
    use = use_of(store, home)
    counts = {kind: n for kind, n in one.count().items() if kind != "base"}
    assert {kind: amount.files for kind, amount in use.kinds.items()} == {
        kind: 2 * n
        for kind, n in counts.items()  # a record and a file
    }
    assert use.sweeps["two"].files == 2 * sum(stage.kind != "base" for stage in two.stages)
    assert use.own["two"].files == 0
    assert use.own["one"] + use.sweeps["two"] == use.sweeps["one"]
    assert use.rest["unreferenced objects"].files == 1
    assert use.total.files >= len(paths(store)) - 1  # a half-written record is none


# The command line


def resurge_store(*arguments: str, store: Store, home: Home) -> Result:
    where = ["--home", str(home.root), "--store", store.location]
    return CliRunner().invoke(store_app, [*arguments, *where])


def test_the_commands(store: Store, home: Home, small: str) -> None:
    plan = fill(store, small, "small")
    shown = resurge_store("du", store=store, home=home)
    assert shown.exit_code == 0, shown.output
    assert "finetune" in shown.output
    values = json.loads(resurge_store("du", "--json", store=store, home=home).stdout)
    assert values["kinds"]["sample"]["files"] == 2 * plan.count()["sample"]
    assert resurge_store("verify", store=store, home=home).exit_code == 0

    stage = next(stage for stage in plan.stages if stage.kind == "sample")
    record = store.get(stage)
    assert record is not None
    store.files.write(record.objects["images.parquet"].path, "x")
    found = resurge_store("verify", store=store, home=home)
    assert found.exit_code == 1
    assert f"sample {stage.key}: " in found.output
    assert store.get(stage) is not None
    assert resurge_store("verify", "--repair", store=store, home=home).exit_code == 1
    assert store.get(stage) is None
    assert resurge_store("verify", store=store, home=home).exit_code == 0

    store.files.write("objects/0123456789abcdef-00000000/x", "x" * 1500)
    assert "Nothing to delete" in resurge_store("gc", store=store, home=home).output
    found = resurge_store("gc", "--older-than", "0s", store=store, home=home)
    assert "Nothing was deleted" in found.output
    assert "1.5 kB" in found.output
    done = resurge_store(
        "gc", "--older-than", "0s", "--quarantine", "--yes", store=store, home=home
    )
    assert "freed" in done.output
    assert store.files.walk("quarantine") == []
    assert not store.files.exists("objects/0123456789abcdef-00000000/x")


@pytest.mark.parametrize("command", ["du", "verify", "gc"])
@pytest.mark.parametrize("where", ["nowhere", "file", "folder"])
def test_a_store_that_is_not_there_is_an_error(tmp_path: Path, command: str, where: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder" / "other").mkdir(parents=True)
    store = Store(tmp_path / where)
    result = resurge_store(command, store=store, home=Home(tmp_path / "home"))
    assert isinstance(result.exception, StoreError)
    assert f"there is no store at {store.location}" in str(result.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_durations_and_sizes() -> None:
    found = [seconds(text) for text in ("90s", "30m", "1.5h", "2d", "0s")]
    assert found == [90.0, 1800.0, 5400.0, 2 * DAY_S, 0.0]
    for odd in ("", "5", "1w", "-1d", "d"):
        with pytest.raises(StoreError, match="as in 12h"):
            seconds(odd)
    assert [size_text(n) for n in (0, 999, 1500, 2.5e9, 3e15)] == [
        "0 B",
        "999 B",
        "1.5 kB",
        "2.5 GB",
        "3,000.0 TB",
    ]
