"""Rows on disk: the index, what it costs, and what it notices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sheen_cli import SheenError, files
from sheen_cli.rows import Rows, bad_codes, encode, index_path, write


def some(count: int) -> list[dict]:
    return [{"id": f"r{i}", "text": "ḥ" * (i % 5), "duration": i / 2} for i in range(count)]


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    assert write(path, map(encode, some(9))) == 9
    rows = Rows(path)
    assert len(rows) == 9 and list(rows) == some(9) and rows[-1] == some(9)[8]
    assert rows[2:4] == some(9)[2:4]
    assert rows.seconds.tolist() == [i / 2 for i in range(9)]
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == some(9)


def test_foreign_files_are_indexed_with_blank_lines_bom_and_crlf(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b", "duration": 2}')
    assert [row["text"] for row in Rows(path)] == ["a", "b"]
    assert index_path(path).is_file()


def test_the_index_follows_an_edited_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write(path, map(encode, some(3)))
    path.write_bytes(path.read_bytes() + encode({"text": "more"}))
    assert len(Rows(path)) == 4
    index_path(path).write_bytes(b"rubbish")
    os.utime(index_path(path))
    assert len(Rows(path)) == 4


def test_a_flipped_byte_is_noticed_and_the_row_named(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write(path, map(encode, some(3)))
    rows, content = Rows(path), bytearray(path.read_bytes())
    content[content.index(b"r1") + 1] = ord("7")
    with path.open("r+b") as stream:  # in place: the open handle sees it
        stream.write(content)
    assert rows[0]["id"] == "r0"
    with pytest.raises(SheenError, match=r"x\.jsonl: row 2 is not what was indexed"):
        rows[1]


def test_broken_json_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(SheenError, match=r"x\.jsonl:2: not JSON"):
        Rows(path)


def test_s0_9_codes_out_of_range_name_file_line_and_codebook(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write(path, map(encode, [{"audio_codes": [[1, 2]]}, {"audio_codes": [[1, 2], [3, 8]]}]))
    rows = Rows(path, codebooks=(8, 8))
    assert rows[0]
    with pytest.raises(
        SheenError, match=r"x\.jsonl:2: audio_codes: frame 1, codebook 1: 8 is not in 0\.\.7"
    ):
        rows[1]


@pytest.mark.parametrize(
    "codes, problem",
    [
        ([[1, 2], [3]], "differ in length"),
        ([[1, 2, 3]], "frames x 2"),
        ([1, 2], "frames x 2"),
        ([[0.5, 1.0]], "whole numbers"),
        ([[1, -1]], "-1 is not in"),
        ([], "frames x 2"),
        (None, "frames x 2"),
        ([["a", "b"]], "whole numbers"),
    ],
)  # fmt: skip
def test_bad_codes(codes: object, problem: str) -> None:
    assert problem in str(bad_codes(codes, (8, 8)))


def test_s0_7_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    """100 000 rows of 2 kB, 200 MB in all, open and read within 40 MB above the bare import."""
    path = tmp_path / "x.jsonl"
    line = encode({"text": "x" * 2000, "duration": 1.0})
    with path.open("wb") as stream:
        for _ in range(100):
            stream.write(line * 1000)
    script = (
        "import resource, sys; from pathlib import Path; from sheen_cli.rows import Rows\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak(); rows = Rows(Path(sys.argv[1])); assert len(rows) == 100_000\n"
        "assert all(len(rows[i]['text']) == 2000 for i in range(0, 100_000, 97))\n"
        "print(peak() - before)"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, check=True
    )
    assert float(out.stdout) < 40


def test_what_json_cannot_hold_is_refused() -> None:
    for value in (float("nan"), object(), "\ud800"):
        with pytest.raises(ValueError):
            encode({"x": value})


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    files.write_text(path, "old")
    with pytest.raises(RuntimeError), files.replacing(path) as stream:
        stream.write(b"new, but")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.txt"]


def test_a_folder_that_fails_leaves_the_old_folder(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with files.building(tmp_path / "x") as part:
            (part / "a").write_text(text)
    with pytest.raises(RuntimeError), files.building(tmp_path / "x") as part:
        (part / "a").write_text("half")
        raise RuntimeError
    assert (tmp_path / "x" / "a").read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]
