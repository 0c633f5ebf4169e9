"""The store of measurements: what was written is there after a kill, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eqdeploy.errors import DataError, OutputError, UsageError
from eqdeploy.network import ElasticSpace, NetworkDescription
from eqdeploy.search.encoding import SubnetEncoding
from eqdeploy.search.store import HEADER_FILE, MeasurementStore, Source, StoreHeader, space_tables
from tests.unit.search_support import measured, network
from tests.unit.training_support import small_supernet


def header(made: NetworkDescription | None = None, **changes: object) -> StoreHeader:
    plain = StoreHeader(
        supernet=Source(name="net", digest="a" * 64),
        data=Source(name="images", digest="b" * 64),
        calibration_images=20,
        images=1000,
        seed=0,
        compiled=False,
        **space_tables(made or network()),
        versions={"eqdeploy": "1"},
    )
    return plain.model_copy(update=changes)


@pytest.fixture
def store(tmp_path: Path) -> MeasurementStore:
    return MeasurementStore.create(tmp_path / "store", header())


def fill(store: MeasurementStore, count: int, process: int = 0) -> None:
    with store.appending(process) as appender:
        for subnet, measurement in measured(count).items():
            appender.append(subnet, measurement)


def test_what_is_written_is_read_exactly_by_another_process(store: MeasurementStore) -> None:
    fill(store, 40)
    again = MeasurementStore.open(store.folder)
    assert again.header == store.header
    assert again.read() == measured(40)
    assert again.header.encoding == SubnetEncoding.of(network())


def test_order_does_not_depend_on_who_measured_what(store: MeasurementStore, tmp_path: Path) -> None:
    fill(store, 30)
    other = MeasurementStore.create(tmp_path / "other", header())
    items = list(measured(30).items())
    for process in range(3):
        with other.appending(process) as appender:
            for subnet, measurement in reversed(items[process::3]):
                appender.append(subnet, measurement)
    assert list(other.read().items()) == list(store.read().items())


def test_the_first_of_two_measurements_of_a_subnet_counts(store: MeasurementStore) -> None:
    fill(store, 5)
    fill(store, 5, process=1)
    assert len(store.read()) == 5


@pytest.mark.parametrize("left", [1, 40, -1])
def test_a_torn_last_line_is_no_measurement_and_goes_when_writing_goes_on(store: MeasurementStore, left: int) -> None:
    fill(store, 4)
    path = store.folder / "measurements-0.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:left])
    assert len(store.read()) == 3
    missing = next(subnet for subnet in measured(4) if subnet not in store.read())
    with store.appending() as appender:
        appender.append(missing, measured(4)[missing])
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"correct":[', '"correct":[9', "more images are correct"),
        ('"digest":"', '"digest":"f', "measurement"),
        ('"weights":[', '"weights":[1,', "another network"),
        ('"weights":[', '"weights":[9999,', "another network"),
        ('"cross_entropy":[', '"cross_entropy":[-', "greater than or equal to 0"),
        ("{", "[", "measurement"),
    ],
)
def test_a_damaged_line_is_named(store: MeasurementStore, old: str, new: str, problem: str) -> None:
    fill(store, 3)
    path = store.folder / "measurements-0.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1].replace(old, new, 1) + lines[2])
    with pytest.raises(DataError, match=problem) as caught:
        store.read()
    assert "measurements-0.jsonl:2" in str(caught.value)


def test_a_line_whose_subnet_was_changed_is_refused(store: MeasurementStore) -> None:
    fill(store, 1)
    path = store.folder / "measurements-0.jsonl"
    line = json.loads(path.read_text())
    line["weights"][1] += 1
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(DataError, match="digest"):
        store.read()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"supernet": Source(name="mine", digest="c" * 64)},
            f"another supernet: net .{'a' * 64}., not mine .{'c' * 64}",
        ),
        (
            {"data": Source(name="mine", digest="d" * 64)},
            f"another data set: images .{'b' * 64}., not mine .{'d' * 64}",
        ),
        ({"images": 7}, "images 1000, not 7"),
        ({"calibration_images": 7}, "calibration_images 20, not 7.*--calibration-images 20"),
        ({"seed": 7}, "seed 0, not 7"),
    ],
)
def test_measurements_of_something_else_are_refused(
    store: MeasurementStore, changes: dict[str, object], problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        MeasurementStore.create(store.folder, header().model_copy(update=changes))


def test_another_space_is_refused(store: MeasurementStore) -> None:
    other = small_supernet(ElasticSpace(bits=(2, 8))).network
    with pytest.raises(UsageError, match="another network"):
        MeasurementStore.create(store.folder, header(other))
    with (
        pytest.raises(UsageError, match="another network"),
        MeasurementStore(store.folder, header(other)).appending() as appender,
    ):
        appender.append(*measured(40).popitem())


def test_a_store_that_exists_is_gone_on_with(store: MeasurementStore) -> None:
    fill(store, 3)
    again = MeasurementStore.create(store.folder, header(versions={"eqdeploy": "2"}, compiled=True))
    assert again.header == store.header  # as it was begun
    assert len(again.read()) == 3


def test_two_runs_do_not_write_to_one_file(store: MeasurementStore) -> None:
    with store.appending(), pytest.raises(OutputError, match="another run"), store.appending():
        pass
    with store.appending():
        pass


def test_an_error_of_who_measures_is_not_blamed_on_the_file(store: MeasurementStore) -> None:
    with pytest.raises(FileNotFoundError, match="a compiler"), store.appending():
        raise FileNotFoundError("a compiler")
    with store.appending():
        pass  # nobody else has it


def test_a_file_that_cannot_be_opened_is_named(store: MeasurementStore) -> None:
    (store.folder / "measurements-0.jsonl").mkdir()
    with pytest.raises(OutputError, match=r"measurements-0.jsonl: cannot write"), store.appending():
        pass


def test_a_run_that_may_write_anywhere_takes_a_file_that_nobody_writes_to(store: MeasurementStore) -> None:
    (first, one), (second, other) = list(measured(2).items())
    with store.appending(None) as appender, store.appending(None) as beside:
        appender.append(first, one)
        beside.append(second, other)
    assert store.read() == {first: one, second: other}
    assert sorted(path.name for path in store.folder.glob("*.jsonl")) == [
        "measurements-0.jsonl",
        "measurements-1.jsonl",
    ]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(OutputError, match="holds no measurements"):
        MeasurementStore.create(tmp_path, header())
    with pytest.raises(OutputError, match="holds no measurements"):
        MeasurementStore.create(tmp_path / "thesis.txt", header())
    with pytest.raises(DataError, match="no measurements"):
        MeasurementStore.open(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", "[1]", "\x00", '{"format": "eqdeploy-measurements"}'])
def test_a_damaged_header_is_named(store: MeasurementStore, content: str) -> None:
    (store.folder / HEADER_FILE).write_text(content)
    with pytest.raises(DataError, match=HEADER_FILE):
        MeasurementStore.open(store.folder)


def test_a_form_that_is_none_is_refused(store: MeasurementStore) -> None:
    path = store.folder / HEADER_FILE
    document = json.loads(path.read_text())
    document["forms"][0] = "77-bits"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match="not a form"):
        MeasurementStore.open(store.folder)
