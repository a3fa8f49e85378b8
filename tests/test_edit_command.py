"""Facts from a table are edited, measured and saved by one command; bad tables are named."""

import json
from dataclasses import replace
from importlib.resources import files

import pytest
import torch
from small_runs import records, write_model
from transformers import AutoModelForCausalLM, Olmo2Config

from conftest import TEXTS
from ece import load
from ece.data.table import facts_from_table
from ece.data.texts import PYTHON_DOCS
from ece.errors import DataError
from ece.experiments.cli import main
from ece.experiments.edit import Options
from ece.facts import Fact
from ece.storage import load_edits, toggle

HEAD = "prompt,subject,target"
SHORT = ["--model", "atlas-gpt2", "--method", "memit", "--stats-tokens", "2000"]
PRESET = str(files("ece.presets") / "atlas-gpt2.toml")
ROWS = (
    "{} lives in,Mira Velan,Oslo",
    '"The trade of {}, all agree, is",Tor Asken,miller',
)


def table(folder, head: str = HEAD, rows=ROWS):
    path = folder / "facts.csv"
    path.write_text("\n".join((head, *rows)) + "\n")
    return path


def test_a_table_becomes_facts(tmp_path):
    head = HEAD + ",true,paraphrases,neighbours"
    rows = (
        f"{ROWS[0]},Rome,Mira Velan's home is | One finds Mira Velan in,",
        f"{ROWS[1]},baker,,X is",
    )
    one, other = facts_from_table(table(tmp_path, head, rows))
    assert one == Fact("{} lives in", "Mira Velan", "Oslo", "Rome", id=1,
        paraphrases=("Mira Velan's home is", "One finds Mira Velan in"))  # fmt: skip
    assert other.neighbours == ("X is",) and other.paraphrases == () and other.id == 2


@pytest.mark.parametrize(
    "head, rows, named",
    [
        ("prompt,subject", ["{} a,b"], "column 'target'"),
        (HEAD + ",colour", ["{} a,b,c,d"], "column 'colour'"),
        (HEAD, [], "no rows"),
        (HEAD, [ROWS[0], "{} lives in,Ilo,"], "row 2, column 'target'"),
        (HEAD, ["lives in,Ilo,Oslo"], "row 1, column 'prompt'"),
        (HEAD, ["{} and {},Ilo,Oslo"], "row 1, column 'prompt'"),
        (HEAD, ["a,b,c,d,e", "a,b"], "facts.csv"),
        (HEAD, ["a\0,b,c"], "binary"),
    ],
)
def test_a_bad_table_is_an_error_that_names_the_place(head, rows, named, tmp_path):
    with pytest.raises(DataError, match="facts.csv") as error:
        facts_from_table(table(tmp_path, head, rows))
    assert named in str(error.value)


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere.csv"):
        facts_from_table(tmp_path / "nowhere.csv")


def test_the_command_edits_saves_and_lists(tmp_path, capsys):
    words = ["edit", str(table(tmp_path)), "--model", "atlas-gpt2", "--method", "ece-rs",
             "--stats-tokens", "2000"]  # fmt: skip
    places = {name: str(tmp_path / name) for name in ("out", "adapter", "save")}
    assert main([*words, *sum(([f"--{n}", p] for n, p in places.items()), []), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["after"]["efficacy"] > record["before"]["efficacy"]
    assert record["after"]["generalization"] is None and record["adapter_error"] < 1e-3

    (model, _), edits = load("atlas-gpt2"), load_edits(places["out"])
    assert toggle(model, edits) == "edited" and len(edits.facts) == record["facts"] == 2
    plain = AutoModelForCausalLM.from_pretrained(places["save"])
    for name, weight in plain.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name

    assert main(["edits", places["out"], "--model", places["save"]]) == 0
    assert capsys.readouterr().out.split()[-1] == "edited"
    assert main(["edits", places["out"], "--model", "atlas-gpt2"]) == 0
    assert capsys.readouterr().out.split()[-1] == "unedited"
    assert main(["edits", places["out"], "--model", "atlas-llama"]) == 0
    assert capsys.readouterr().out.split()[-1] == "neither"


def test_a_file_of_statistics_that_is_not_there_is_written_and_then_read(tmp_path, tokenizers):
    model, stats = write_model(tmp_path, tokenizers["gpt2"]), tmp_path / "moments.safetensors"
    options = Options(str(table(tmp_path)), model, stats=str(stats))
    assert options.settings(2).stats_text == PYTHON_DOCS
    stats.touch()
    assert options.settings(2).stats_text is None
    assert replace(options, stats_text="own.txt").settings(2).stats_text == "own.txt"


def test_the_table_shows_answers_before_and_after(tmp_path, capsys):
    words = ["edit", str(table(tmp_path)), "--model", "atlas-gpt2", "--method", "memit"]
    assert main([*words, "--out", str(tmp_path / "out"), "--stats-tokens", "2000"]) == 0
    shown = capsys.readouterr().out
    assert "answer before" in shown and "Mira Velan lives in" in shown and " MB, " in shown


def test_what_edits_no_layers_is_refused(tmp_path, capsys):
    words = ["edit", str(table(tmp_path)), "--model", "atlas-gpt2", "--method", "retrieval"]
    assert main(words) == 2
    assert "--method" in capsys.readouterr().err


def test_a_method_that_acts_when_the_model_is_used_is_refused(tmp_path, capsys):
    words = ["edit", str(table(tmp_path)), "--model", "atlas-gpt2", "--method", "prune"]
    assert main(words) == 2 and not (tmp_path / "edits.safetensors").exists()
    assert "restrains the update when the model is used" in capsys.readouterr().err


def test_contradicting_rows_are_refused_before_the_second_moments(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ece.experiments.edit.statistics", None)
    file = table(tmp_path, rows=(ROWS[0], ROWS[0]))
    words = ["edit", str(file), *SHORT, "--out", str(tmp_path / "out")]
    assert main(words) == 2 and "repeats" in capsys.readouterr().err
    for apart in (["--batch", "1"], ["--method", "rome"]):  # one fact a batch: the second one holds
        with pytest.raises(TypeError, match="'NoneType' object is not callable"):
            main([*words, *apart])


def test_what_the_model_cannot_read_is_refused_before_the_second_moments(
    tmp_path, tokenizers, capsys, monkeypatch
):
    monkeypatch.setattr("ece.experiments.edit.statistics", None)
    model = write_model(tmp_path, tokenizers["gpt2"])
    head = "prompt,subject,target,true,neighbours"
    row = f"{{}} lives in,Mira Velan,Rome,Paris,{'Tala ' * 600}lives in"
    words = ["edit", str(table(tmp_path, head, (row,))), "--model", model, "--method", "memit"]
    assert main([*words, "--set", "layers=0,1", "--out", str(tmp_path / "out")]) == 2
    assert "the model reads" in capsys.readouterr().err


def test_files_toggled_together_are_each_told_by_their_own_turn(tmp_path, capsys):
    places = [str(tmp_path / name) for name in ("one", "edited", "two", "both")]
    one, edited, two, both = places
    assert main(["edit", str(table(tmp_path)), *SHORT, "--out", one, "--save", edited]) == 0
    other = table(tmp_path, rows=("{} lives in,Rok Simmer,Oslo",))
    assert main(["edit", str(other), "--model", edited, "--preset", PRESET, *SHORT[2:],
                 "--stats-text", "python-docs", "--out", two]) == 0  # fmt: skip
    capsys.readouterr()
    words = ["--model", "atlas-gpt2", "--toggle", "--save", both]
    assert main(["edits", str(one), str(two), *words]) == 0
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[-1] for row in rows] == ["edited", "edited"]


def test_a_folder_of_work_lets_the_command_go_on(tmp_path, capsys):
    words = ["edit", str(table(tmp_path)), "--model", "atlas-gpt2", "--stats-tokens", "2000",
             "--batch", "1", "--json"]  # fmt: skip
    marks = []
    for name in ("plain", "first", "again"):
        own = [] if name == "plain" else ["--work", str(tmp_path / "work")]
        assert main([*words, *own, "--out", str(tmp_path / name)]) == 0
        marks.append(load_edits(tmp_path / name).edited)
    assert len(set(marks)) == 1
    capsys.readouterr()
    other = table(tmp_path, rows=(ROWS[0], '"The trade of {}, all agree, is",Ilo,miller'))
    assert main(["edit", str(other), *words[2:], *own, "--out", str(tmp_path / "other")]) == 2
    assert "'facts' differs" in capsys.readouterr().err


def test_the_command_says_by_which_settings_it_edits(tmp_path, capsys):
    words = ["edit", str(table(tmp_path)), *SHORT, "--out", str(tmp_path / "out"), "--force"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "memit, preset atlas-gpt2: layers 0,1,2, lam " in shown
    assert "steps 25, history False" in shown
    assert main([*words, "--json", "--set", "steps=2"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["config"]["steps"] == 2 and record["preset"] == "atlas-gpt2"
    assert load_edits(tmp_path / "out").about["config"]["steps"] == 2


def test_a_setting_without_a_flag_is_named_as_one(tmp_path, capsys):
    """`ece edit` has --set and no --lr."""
    words = ["edit", str(table(tmp_path)), *SHORT, "--out", str(tmp_path / "out"), "--set"]
    for text, message in (
        ("lr=1e30", "error: setting 'lr' is 1e+30"),
        ("layers=0,9", "error: setting 'layers' ends at 9"),
        ("lr", "argument --set: setting 'set' has 'lr'; write name=value"),
    ):
        assert main([*words, text]) == 2
        assert message in capsys.readouterr().err


def test_records_are_edited_like_a_table(tmp_path, capsys):
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(records()[:2]))
    words = ["edit", str(path), *SHORT, "--out", str(tmp_path / "out"), "--json"]
    assert main(words) == 0 and json.loads(capsys.readouterr().out)["facts"] == 2


def test_the_answer_that_is_there_already_is_refused(tmp_path):
    with pytest.raises(DataError, match="row 1: 'target' and 'true' are both 'Oslo'"):
        facts_from_table(table(tmp_path, f"{HEAD},true", [f"{ROWS[0]},Oslo"]))


def test_where_a_norm_follows_the_mlp_the_command_takes_one_layer(tmp_path, tokenizers, capsys):
    """Layers by depth were refused, after the second moments."""
    sizes = dict(vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=8)
    heads = dict(num_attention_heads=4, num_key_value_heads=4, head_dim=8)
    AutoModelForCausalLM.from_config(Olmo2Config(**sizes, **heads)).save_pretrained(tmp_path / "m")
    tokenizers["llama"].save_pretrained(tmp_path / "m")
    (tmp_path / "text.txt").write_text("\n".join(TEXTS[:20]))
    words = ["edit", str(table(tmp_path)), "--model", str(tmp_path / "m"), "--json"]
    words += ["--stats-text", str(tmp_path / "text.txt"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["config"]["layers"] == [2]
    assert main([*words, "--force", "--set", "layers=1,2"]) == 2
    assert "a norm follows the MLPs" in capsys.readouterr().err


def test_an_adapter_is_not_written_from_parts(tmp_path, capsys):
    words = ["--sharding", "tp", "--adapter", str(tmp_path / "adapter")]
    assert main(["edit", str(table(tmp_path)), "--model", "atlas-gpt2", *words]) == 2
    assert "'sharding' and 'adapter'" in capsys.readouterr().err


def test_edits_in_half_precision_are_found_applied_and_taken_back(tmp_path, capsys):
    out, there, back = (str(tmp_path / name) for name in ("out", "edited", "back"))
    words = ["edit", str(table(tmp_path)), *SHORT, "--dtype", "bfloat16", "--out", out]
    assert main(words) == 0
    toggled = ["edits", out, "--model", "atlas-gpt2", "--toggle", "--save", there]
    assert main(toggled) == 0 and capsys.readouterr().out.split()[-1] == "edited"
    assert main(["edits", out, "--model", there, "--toggle", "--save", back]) == 0
    assert capsys.readouterr().out.split()[-1] == "unedited"
    plain, _ = load("atlas-gpt2", dtype=torch.bfloat16)
    for name, weight in load(back, dtype=torch.bfloat16)[0].state_dict().items():
        assert torch.equal(weight, plain.state_dict()[name]), name
    assert main(["edits", out, "--toggle"]) == 2
    assert "'toggle', 'model' and 'save' go together" in capsys.readouterr().err
    assert main(["edits", out, "--model", "atlas-gpt2", "--save", str(tmp_path / "none")]) == 2
    assert main([*toggled[:-1], there]) == 2, "a folder with a model in it is not written over"
    assert "'save' is" in capsys.readouterr().err
    twice = ["edits", out, out, *toggled[2:-1], str(tmp_path / "twice")]
    assert main(twice) == 0 and capsys.readouterr().out.split()[-1] == "unedited"


def test_edits_and_tables_that_are_there_are_not_overwritten(tmp_path, capsys):
    file = table(tmp_path)
    words = ["edit", str(file), *SHORT, "--out"]
    assert main([*words, str(file), "--force"]) == 2 and file.read_text().startswith(HEAD)
    (tmp_path / "out").write_text("somebody's")
    assert main([*words, str(tmp_path / "out")]) == 2
    assert (tmp_path / "out").read_text() == "somebody's"
    assert "--force" in capsys.readouterr().err
    for place in (str(tmp_path), ".", "/dev/null"):
        assert main([*words, place]) == 2
        assert "is no file" in capsys.readouterr().err


def test_numbers_are_set_and_what_did_not_take_is_said(tmp_path, capsys):
    words = ["edit", str(table(tmp_path)), *SHORT, "--out", str(tmp_path / "out"), "--force"]
    assert main([*words, "--set", "steps=1 layers=0"]) == 0
    assert "not the likeliest answer yet in 2 of 2 rows: 1, 2" in capsys.readouterr().out
    assert load_edits(tmp_path / "out").columns.keys() == {0}
    for wrong in ("stepps=1", "steps=one", "steps=-1", "layers=x"):
        assert main([*words, "--set", wrong]) == 2
        assert wrong.partition("=")[0] in capsys.readouterr().err


@pytest.mark.parametrize("column", ["paraphrases", "neighbours"])
def test_whole_prompts_hold_no_place_for_the_subject(column, tmp_path):
    rows = [f"{ROWS[0]},Rome,The home of {{}} is"]
    with pytest.raises(DataError, match=f"'{column}': write whole prompts"):
        facts_from_table(table(tmp_path, f"{HEAD},true,{column}", rows))


def test_neighbours_need_the_answer_they_should_stay_with(tmp_path):
    with pytest.raises(DataError, match="needs 'true'"):
        facts_from_table(table(tmp_path, f"{HEAD},neighbours", [f"{ROWS[0]},X is"]))


def test_a_table_serves_as_data_of_a_run(tmp_path, capsys):
    words = ["run", "--data", str(table(tmp_path)), "--facts", "2", "--batch", "2", "--json"]
    assert main([*words, *SHORT]) == 0
    assert json.loads(capsys.readouterr().out)["after"]["efficacy_top1"] is not None
