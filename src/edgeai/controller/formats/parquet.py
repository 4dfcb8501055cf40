"""parquet: columns of simple types, read in batches. The only door to pyarrow, which is an extra of its own.

Times travel through the examples as integers and decimals as text, and are cast back when they are written.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgpack

from edgeai.controller.formats.base import (
    START,
    DatasetProblem,
    Field,
    Found,
    Known,
    Layout,
    Misfit,
    Position,
    Record,
    Records,
    Row,
    Written,
    as_json,
    chosen_label,
    id_of_values,
    left_out,
    spread,
)

_BATCH = 1024


def _arrow() -> tuple[Any, Any]:
    """Raises DatasetProblem."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DatasetProblem(
            "parquet needs pyarrow on this node; install it with: pip install 'edgeai[parquet]'"
        ) from error
    return pa, pq


class Parquet:
    name = written = "parquet"
    ending = ".parquet"
    appends = False
    fixed_columns = True

    def inspect(self, path: Path) -> Found:
        pa, pq = _arrow()
        samples = 0
        try:
            with pq.ParquetFile(path) as file:
                schema = {each.name: str(each.type) for each in file.schema_arrow}
                for batch in file.iter_batches(_BATCH):  # its checksums and codecs are tried
                    samples += batch.num_rows
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _no_parquet(path, error) from error
        if not samples:
            raise DatasetProblem(f"{path} has no rows")
        return Found(samples, schema)

    def layout(self, path: Path, label: str = "") -> Layout:
        pa, pq = _arrow()
        try:
            with pq.ParquetFile(path) as file:
                schema = file.schema_arrow
        except (pa.ArrowException, OSError, ValueError) as error:
            raise _no_parquet(path, error) from error
        for each in schema:
            _stored(pa, each.type, each.name)
            if schema.names.count(each.name) > 1:
                raise DatasetProblem(f"{path} has two columns named {each.name}")
        fields = tuple(Field(each.name, str(each.type)) for each in schema)
        bare = schema.remove_metadata().serialize().to_pybytes()
        return Layout(fields, chosen_label(schema.names, label, path), base64.b64encode(bare).decode())

    def rows(
        self,
        path: Path,
        layout: Layout,
        start: Position = START,
        *,
        settled: bool = True,
        known: Known = frozenset(),
    ) -> Generator[Row, None, None]:
        pa, pq = _arrow()
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_BATCH):
                    for values in _plain(pa, batch):
                        label = values.pop(layout.label, None)
                        payload = msgpack.packb(values)
                        yield Row(id_of_values(values), _label(label), payload, Position())
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise _no_parquet(path, error) from error

    def check_label(self, label: str, layout: Layout) -> None:
        pa, _ = _arrow()
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(layout.extra)))
        place = schema.get_field_index(layout.label)
        if place >= 0:
            _table(pa, [{layout.label: json.loads(label)}], pa.schema([schema.field(place)]))

    def write(self, path: Path, layout: Layout, records: Records, files: Path) -> Written:
        pa, pq = _arrow()
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(layout.extra))) if layout.extra else None
        schema = schema or _schema_of_first(pa, records)
        layout = layout if layout.fields else Layout(tuple(Field(name) for name in schema.names), "y")
        misfits: dict[str, int] = {}
        samples = 0
        with pq.ParquetWriter(path, schema, compression="snappy") as writer:
            following = records()
            while batch := list(islice(following, _BATCH)):
                rows = []
                for record in batch:
                    try:
                        row = _values(record, layout)
                        _table(pa, [row], schema)
                    except Misfit as misfit:
                        left_out(misfits, misfit)
                        continue
                    rows.append(row)
                if rows:
                    writer.write_table(_table(pa, rows, schema))
                samples += len(rows)
        return Written(samples, misfits)


def _no_parquet(path: Path, error: Exception) -> DatasetProblem:
    return DatasetProblem(f"{path} is not a parquet file ({' '.join(str(error).split())[:300]})")


def _stored(pa: Any, kind: Any, name: str) -> Any:
    """The type that a column's values have on their way. Raises DatasetProblem for one that is not supported."""
    types = pa.types
    if types.is_temporal(kind) and not types.is_interval(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    if types.is_decimal(kind):
        return pa.string()
    if types.is_dictionary(kind):
        return _stored(pa, kind.value_type, name)
    inner = kind
    while types.is_list(inner) or types.is_large_list(inner) or types.is_fixed_size_list(inner):
        inner = inner.value_type
    simple = (types.is_integer, types.is_floating, types.is_boolean, types.is_string, types.is_large_string)
    if any(each(inner) for each in (*simple, types.is_binary, types.is_large_binary, types.is_fixed_size_binary)):
        return kind
    if types.is_null(inner):
        return kind
    raise DatasetProblem(
        f"column {name} is {kind}, which is not supported; use numbers, text, bytes, times, or lists of them"
    )


def _plain(pa: Any, batch: Any) -> Iterator[dict[str, Any]]:
    columns = [
        column.cast(_stored(pa, column.type, name)) for name, column in zip(batch.schema.names, batch, strict=True)
    ]
    yield from pa.RecordBatch.from_arrays(columns, names=batch.schema.names).to_pylist()


def _label(value: Any) -> str | None:
    if value is None or value == "":
        return None
    try:
        return as_json(value)
    except (ValueError, TypeError):  # not a number, or bytes
        return None


def _values(record: Record, layout: Layout) -> dict[str, Any]:
    values = spread(record, layout) if record.hard else msgpack.unpackb(record.payload)
    values[layout.label] = json.loads(record.label)
    return values


def _table(pa: Any, rows: list[dict[str, Any]], schema: Any) -> Any:
    """Raises Misfit."""
    stored = pa.schema([(each.name, _stored(pa, each.type, each.name)) for each in schema])
    try:
        table = pa.Table.from_pylist(rows, schema=stored)
        columns = [column.cast(each.type) for column, each in zip(table.columns, schema, strict=True)]
        return pa.Table.from_arrays(columns, schema=schema)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise Misfit(f"it does not fit the columns: {str(error)[:100]}") from error


def _schema_of_first(pa: Any, records: Records) -> Any:
    for record in records():
        try:
            row = _values(record, Layout((), "y"))
        except Misfit:
            continue
        return pa.Table.from_pylist([row]).schema
    return pa.schema([("x", pa.list_(pa.float64())), ("y", pa.int64())])
