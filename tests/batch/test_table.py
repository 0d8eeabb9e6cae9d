"""What a table's rows are, which inputs they fill, and what is said of a table that will not do."""
import io
import json
import tarfile
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from palimpsest.batch.binding import Binding, bind, find, read_workflow
from palimpsest.batch.plan import plan, shapes, whole
from palimpsest.batch.table import Picture, Row, TableError, read_table, with_grid
from PIL import Image

GRAPH = {"1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}, "_meta": {"title": "Photo"}},
         "2": {"class_type": "Edit", "inputs": {"picture": ["1", 0], "text": "", "end": 0.8, "steps": 5, "way": "a"},
               "_meta": {"title": "Edit v1.5"}}}
INFO = {"LoadImage": {"input": {"required": {"image": [["a.png"], {"image_upload": True}]}}},
        "Edit": {"input": {"required": {"picture": ["IMAGE"], "text": ["STRING", {}], "end": ["FLOAT", {}],
                                        "steps": ["INT", {}], "way": [["a", "b"], {}]}}}}


@pytest.fixture
def folder(tmp_path):
    """Two photos, one with a mask, a sentence and settings."""
    for name, shade in (("cat.png", 10), ("cat.mask.png", 255), ("dogs/dog.png", 99)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(tmp_path / name)
    (tmp_path / "cat.txt").write_text("a cat\n")
    (tmp_path / "cat.json").write_text(json.dumps({"steps": 7}))
    return tmp_path


def planned(rows, chosen, folder, versions=("1",), grouped="", graph=GRAPH):
    columns = list(dict.fromkeys(name for row in rows for name in row.values))
    return plan(graph, bind(graph, INFO, columns, chosen), rows, {"versions": list(versions)}, folder, grouped)


def test_a_picture_that_all_rows_share_makes_no_group(folder):
    graph = GRAPH | {"3": {"class_type": "LoadImage", "inputs": {"image": "a.png"}, "_meta": {"title": "Reference"}}}
    rows = with_grid(read_table(folder), {"Reference.image": ["cat.mask.png"]})
    bindings = bind(graph, INFO, list(rows[0].values), {"Photo.image": "picture"})
    found = plan(graph, bindings, rows, {}, folder, grids=["Reference.image"])
    assert [len(group) for group in found.groups(found.jobs)] == [1, 1]


def test_a_group_is_named_after_its_picture_without_the_machines_folders(folder):
    found = planned(read_table(folder), {"Photo.image": "picture"}, folder, grouped="picture")
    assert [job.group for job in found.jobs] == ["cat.png", "dogs/dog.png"]


def test_files_of_other_editors_may_begin_with_a_mark(folder):
    (folder / "cat.txt").write_text("a cat", encoding="utf-8-sig")
    assert read_table(folder)[0].values["txt"] == "a cat"
    (folder / "flow.json").write_text(json.dumps(GRAPH), encoding="utf-8-sig")
    assert read_workflow(folder / "flow.json") == GRAPH


def csv(folder, text):
    (folder / "table.csv").write_text(text, encoding="utf-8")
    return read_table(folder / "table.csv")


def test_a_folder_and_a_tar_file_give_the_same_rows(folder):
    with tarfile.open(folder.parent / "all.tar", "w") as archive:
        for path in sorted(folder.rglob("*.*")):
            archive.add(path, path.relative_to(folder))
    listed, packed = read_table(folder), read_table(folder.parent / "all.tar")
    for rows in (listed, packed):
        cat, dog = (row.values for row in rows)
        assert (cat["name"], cat["txt"], cat["steps"]) == ("cat", "a cat", 7) and dog["name"] == "dogs/dog"
        assert set(cat) == {"name", "picture", "mask", "txt", "steps"}
    for one, other in zip(listed, packed):
        assert one.values["picture"].read() == other.values["picture"].read()


def test_csv_and_parquet_fill_the_same_inputs(folder):
    pq = pytest.importorskip("pyarrow.parquet", reason="Ray's data part brings it")
    import pyarrow
    rows = csv(folder, "photo,Edit v1.5.steps,Edit v1.5.text\ncat.png,7,a cat\ndogs/dog.png,8,\"a dog, a cat\"\n")
    pq.write_table(pyarrow.table({"photo": [(folder / r.values["photo"]).read_bytes() for r in rows],
                                  "Edit v1.5.steps": [7, 8], "Edit v1.5.text": ["a cat", "a dog, a cat"]}),
                   folder / "table.parquet")
    one, other = (planned(r, {"Photo.image": "photo"}, folder) for r in (rows, read_table(folder / "table.parquet")))
    assert [list(j.values.values()) for j in one.jobs] == [list(j.values.values()) for j in other.jobs]
    filled = one.graph_of(one.jobs[1])
    assert filled["2"]["inputs"]["steps"] == 8 and filled["2"]["inputs"]["picture"] == ["1", 0]
    assert filled["2"]["inputs"]["text"] == "a dog, a cat" and filled["1"]["inputs"]["image"].endswith(".png")
    assert GRAPH["2"]["inputs"]["steps"] == 5


def test_a_grid_runs_every_setting_on_every_row_and_a_picture_is_one_group(folder):
    rows = with_grid(csv(folder, "Photo.image\ncat.png\ndogs/dog.png\n"), {"Edit v1.5.end": ["0.4", "0.8"],
                                                                           "2.way": ["a", "b"]})
    found = planned(rows, {}, folder)
    assert len({job.key for job in found.jobs}) == 8 and [len(g) for g in found.groups(found.jobs)] == [4, 4]
    assert {job.values[b] for job in found.jobs for b in found.bindings if b.input == "end"} == {0.4, 0.8}
    checked = [[job.values[b] for b in found.bindings if b.input != "image"] for job in shapes(found)]
    assert {value for values in checked for value in values} == {0.4, 0.8, "a", "b"} and len(checked) < 8
    assert len(planned(rows, {}, folder, grouped="2.way").groups(found.jobs)) == 2


def test_a_grid_tries_a_value_that_is_written_in_two_ways_once(folder):
    """Where the input takes numbers. In a text they are two. A row that another one equals is refused as before."""
    grid = {"Edit v1.5.steps": ["3", "3.0"], "2.end": ["0.5", "0.50", ".5"], "2.text": ["3", "3.0", "3"]}
    found = planned(with_grid(csv(folder, "Photo.image\ncat.png\ndogs/dog.png\n"), grid), {}, folder)
    assert [[job.values[b] for b in found.bindings if b.input in ("steps", "end", "text")] for job in found.jobs] == [
        [3, 0.5, "3"], [3, 0.5, "3.0"]] * 2
    with pytest.raises(TableError, match="rows 1 and 2 are equal in every column"):
        planned(with_grid(csv(folder, "Photo.image\ncat.png\ncat.png\n"), {"2.steps": ["3", "3.0"]}), {}, folder)


def test_a_row_without_the_column_to_group_by_is_told(folder):
    rows = [Row(1, {"2.text": "a", "who": "me"}), Row(2, {"2.text": "b"})]
    with pytest.raises(TableError, match="row 2 has no 'who' to group by: it has 2.text"):
        planned(rows, {}, folder, grouped="who")


def test_a_choice_that_the_host_asks_for_elsewhere_can_be_bound(folder):
    """Its list is not in the host's answer."""
    info = {"Edit": {"input": {"required": {"way": ["COMBO", {"remote": {"route": "/ways"}}]}}}}
    binding, = bind({"2": GRAPH["2"]}, info, ["2.way"], {})
    assert binding.kind == "COMBO" and binding.value(Row(1, {"2.way": "b"}), folder) == "b"


def test_a_key_holds_all_that_decides_a_result(folder):
    def keys(text="a cat", photo="cat.png", graph=GRAPH, versions="1"):
        found = planned([Row(1, {"Photo.image": photo, "2.text": text})], {}, folder, versions, graph=graph)
        return found.jobs[0].key, found.name

    (folder / "same.png").write_bytes((folder / "cat.png").read_bytes())
    key, name = keys()
    assert keys() == (key, name) and keys(text="a dog")[0] != key and keys(text="a dog")[1] == name
    changed = json.loads(json.dumps(GRAPH))
    changed["2"]["inputs"]["steps"] = 6
    assert not {key, name} & {*keys(graph=changed), *keys(versions="2")}
    (folder / "cat.png").write_bytes((folder / "dogs/dog.png").read_bytes())
    assert keys()[0] != key and keys()[1] == name


@pytest.mark.parametrize("text, chosen, said", [
    ("2.steps\n5\nmany\n", {}, r"row 2: 2\.steps is 'many', but 'steps' takes INT"),
    ("2.steps\n5.5\n", {}, r"row 1: .* takes INT"),
    ("2.steps,name\n5\n", {}, "row 1 of .* has fewer cells than the header"),
    ("2.steps\n5\n6\n5\n", {}, "rows 1 and 3 are equal in every column"),
    ("a\n5\n", {"Edit v1.5.steps": "b"}, "the table has no column b: it has a"),
    ("a\n5\n", {"Edit.steps": "a"}, r"'Edit\.steps' names no node: the workflow has 'Photo', 'Edit v1\.5'"),
    ("a\n5\n", {"Edit v1.5.stepz": "a"}, r"'Edit v1\.5' has no input 'stepz': it has picture, text, end, steps, way"),
    ("a\n5\n", {}, "no column is bound to an input"),
    ("2.steps\n", {}, "has no rows"),
    ("2.steps,Edit v1.5.steps\n5,6\n", {}, r"'2\.steps' and 'Edit v1\.5\.steps' both fill 'steps' of 'Edit v1\.5'"),
    ("2.end\nnan\n", {}, "row 1: .* takes FLOAT"),
    ("a\n5\n", {"2.picture": "a"}, r"'picture' of 'Edit v1\.5' takes IMAGE from another node: no column can fill it"),
    ("name,Photo.image\ncat,cat.png\nmouse,\n", {}, r"row 2 \(mouse\) has no 'Photo\.image': fill it in"),
])
def test_a_table_that_will_not_do_is_told_by_its_row(text, chosen, said, folder):
    with pytest.raises(TableError, match=said):
        planned(csv(folder, text), chosen, folder)


def test_seeds_of_64_bits_are_filled_in_whole_and_no_number_is_cut_off():
    seed = Binding("seed", "3", "seed", "INT")
    for given, wanted in ((2 ** 64 - 1, 2 ** 64 - 1), (str(2 ** 53 + 1), 2 ** 53 + 1), (5.0, 5), (Decimal("5"), 5),
                          ("7.0", 7), (f"{2 ** 53 + 1}.0", 2 ** 53 + 1)):
        found = seed.value(Row(1, {"seed": given}), Path())
        assert found == wanted and isinstance(found, int)
    for given in (5.5, "5.5", Decimal("5.5"), float("inf"), "inf", float("nan"), "nan", "", [1], 2 ** 64,
                  "1e999999999"):
        with pytest.raises(TableError, match="row 1: seed is .* but 'seed' takes INT"):
            seed.value(Row(1, {"seed": given}), Path())
    assert Binding("end", "2", "end", "FLOAT").value(Row(1, {"end": Decimal("0.1")}), Path()) == 0.1


@pytest.mark.parametrize("given, said", [(None, "has no 'text'"), (float("nan"), "has no 'text'"),
                                         (["a cat", "a pet"], r"text is \['a cat', 'a pet'\], but 'text' takes STRING"),
                                         ({"en": "a cat"}, "text is .* but 'text' takes STRING")])
def test_what_is_no_text_becomes_none(given, said):
    """A NaN is what pandas writes where nothing was."""
    with pytest.raises(TableError, match=f"row 1:? {said}"):
        Binding("text", "2", "text", "STRING").value(Row(1, {"text": given}), Path())


def test_nodes_of_one_title_are_told_apart_by_their_inputs():
    twins = {"1": {**GRAPH["1"], "_meta": {"title": "Edit"}}, "2": {**GRAPH["2"], "_meta": {"title": "Edit"}}}
    assert find(twins, "Edit.steps") == ("2", "steps") and find(twins, "Edit.image") == ("1", "image")
    with pytest.raises(TableError, match=r"'Edit\.steps' could be each of the nodes 2, 3: use .* 2\.steps"):
        find(twins | {"3": twins["2"]}, "Edit.steps")


def test_a_picture_of_hugging_faces_is_bytes_or_a_file(folder):
    pq = pytest.importorskip("pyarrow.parquet", reason="Ray's data part brings it")
    import pyarrow
    held = (folder / "cat.png").read_bytes()
    pq.write_table(pyarrow.table({"photo": [{"bytes": held, "path": None}, {"bytes": None, "path": "cat.png"},
                                            {"bytes": None, "path": None}]}), folder / "t.parquet")
    binding = Binding("photo", "1", "image", "PICTURE")
    one, two, three = read_table(folder / "t.parquet")
    assert binding.value(one, folder).read() == binding.value(two, folder).read() == held
    with pytest.raises(TableError, match="row 3 has no 'photo'"):
        binding.value(three, folder)


def test_a_grid_does_not_cover_a_column():
    with pytest.raises(TableError, match="the table has a column '2.end', which --grid fills too"):
        with_grid([Row(1, {"2.end": "0.5"})], {"2.end": ["0.4"]})


def test_a_column_of_days_is_part_of_a_key(folder):
    def key(day):
        return planned([Row(1, {"2.text": "a cat", "day": date(2026, 1, day)})], {}, folder).jobs[0].key

    assert key(1) == key(1) != key(2)


@pytest.mark.parametrize("name, data, said", [
    ("cat.jpg", b"", r"cat\.png is the second file of its row with 'picture': .* rename one of them"),
    ("mouse.txt", b"\xe9", r"mouse\.txt cannot be read \(.*: text is UTF-8"),
    ("mouse.json", b"[1]", r"mouse\.json cannot be read \(.* JSON an object"),
    ("table.csv", "2.text\né\n".encode("latin-1"), r"table\.csv is not in UTF-8")])
def test_files_that_make_no_row_are_told_by_their_names(name, data, said, folder):
    (folder / name).write_bytes(data)
    with pytest.raises(TableError, match=said):
        read_table(folder / name if name == "table.csv" else folder)


def torn_tar(compressed=False):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz" if compressed else "w") as archive:
        part = tarfile.TarInfo("cat.png")
        part.size = 3000
        archive.addfile(part, io.BytesIO(bytes(part.size)))
    return file.getvalue() if compressed else file.getvalue()[:2000]


@pytest.mark.parametrize("name, data, said", [
    ("t.tar", b"nonsense", r"t\.tar cannot be read as a tar file"),
    ("t.tar", torn_tar(), r"t\.tar cannot be read as a tar file .*: make it anew"),
    ("t.tar", torn_tar(compressed=True), r"tar file without compression .*: .* unpack it and name the folder"),
    ("t.csv", b'a,b\n1,"' + b"x" * 150_000, r"t\.csv cannot be read beyond line 1 .* mark that is not closed"),
    ("t.csv", b"a,b,a\n1,2,3\n", r"t\.csv has 2 columns 'a'"),
    ("t.parquet", b"nonsense", r"t\.parquet cannot be read as Parquet .*: write or download it anew")],
    ids=["no tar", "torn tar", "compressed tar", "open quotation", "a column twice", "no Parquet"])
def test_a_broken_table_is_told_with_what_to_do(name, data, said, tmp_path):
    if name == "t.parquet":
        pytest.importorskip("pyarrow.parquet", reason="Ray's data part brings it")
    (tmp_path / name).write_bytes(data)
    with pytest.raises(TableError, match=f"(?s){said}"):
        read_table(tmp_path / name)


def test_a_tables_kind_may_be_written_large(folder):
    (folder / "T.CSV").write_text("2.text\na cat\n")
    assert read_table(folder / "T.CSV")[0].values == {"2.text": "a cat"}


def test_hidden_files_are_no_rows(folder):
    wanted = [row.values["name"] for row in read_table(folder)]
    (folder / "._cat.png").write_bytes(b"what a Mac adds to an archive")
    with tarfile.open(folder.parent / "hidden.tar", "w") as archive:
        for path in sorted(folder.rglob("*.*")):
            archive.add(path, path.relative_to(folder))
    for table in (folder, folder.parent / "hidden.tar"):
        assert [row.values["name"] for row in read_table(table)] == wanted


def test_a_picture_that_nothing_can_read_is_its_rows_failure_alone(folder):
    (folder / "torn.png").write_bytes(b"no picture")
    found = planned(csv(folder, "Photo.image\ncat.png\ntorn.png\nmissing.png\n"), {}, folder)
    assert [bool(job.broken) for job in found.jobs] == [False, True, True]
    assert found.jobs[1].broken.startswith("row 2: the picture torn.png cannot be read") and len(shapes(found)) == 1


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_picture_whose_end_is_missing_is_not_sent(kind, tmp_path):
    shades = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(shades).save(tmp_path / "whole", kind)
    data = (tmp_path / "whole").read_bytes()
    assert whole(Picture("whole", tmp_path / "whole")) == data
    with pytest.raises(OSError, match="torn, .*: replace it"):
        whole(Picture("torn", held=data[:len(data) * 3 // 4]))


def test_a_drawing_of_the_canvas_is_no_workflow_for_the_api(tmp_path):
    for drawing in {"nodes": [], "links": []}, {}:
        (tmp_path / "w.json").write_text(json.dumps(drawing))
        with pytest.raises(TableError, match=r"no workflow in API format: in ComfyUI choose File > Export \(API\)"):
            read_workflow(tmp_path / "w.json")
    assert Picture("held", held=b"1").read() == b"1"
