"""The prompt language: what AUTOMATIC1111's parser documents, the same laws for any text, and the tags."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdlora.errors import SdloraError
from sdlora.prompts import Tag, current, extract, parts, schedule, spans
from sdlora.prompts.attention import END_OF_CHUNK
from sdlora.prompts.library import find, listed
from sdlora.strength import Strength, parse

law = settings(max_examples=200)
WORDS = ("a", "cat", " ", "(", ")", "[", "]", ":", "|", "\\", "1.3", ":1.3)", "3", ":3]", ":.5]", ",", "BREAK", " AND ", "\n", "<", ">")
prompts = st.one_of(st.text(), st.lists(st.sampled_from(WORDS), max_size=14).map("".join))


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("normal text", [("normal text", 1.0)]),
        ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        (r"\(literal\]", [("(literal]", 1.0)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                *(("a ", 1.0), ("house", 1.5730000000000004), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55)),
                *((", sun, ", 1.1), ("sky", 1.4641000000000006), (".", 1.1)),
            ],
        ),
    ],
)
def test_emphasis_is_what_a1111_documents(prompt: str, expected: list):
    assert spans(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("", [("", 1.0)]),
        ("[word]", [("word", 1 / 1.1)]),
        ("(a: 1.5 )", [("a", 1.5)]),
        ("(a:-0.5)", [("a", -0.5)]),
        ("((a:2)b)", [("a", 2.2), ("b", 1.1)]),
        ("a:1.2)", [("a:1.2)", 1.0)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),  # A1111 raises
        ("a) b", [("a) b", 1.0)]),
        ("a] (b", [("a] ", 1.0), ("b", 1.1)]),
        (r"\\(a)", [("\\", 1.0), ("a", 1.1)]),
        (r"back\slash", [("backslash", 1.0)]),
        ("a BREAK b", [("a", 1.0), END_OF_CHUNK, ("b", 1.0)]),
        ("a BREAKFAST", [("a BREAKFAST", 1.0)]),
        ("(a BREAK b)", [("a", 1.1), ("BREAK", -1.1), ("b", 1.1)]),  # in brackets it is a word, as in A1111
    ],
)
def test_emphasis_at_its_edges(prompt: str, expected: list):
    assert spans(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a [b : c : 1] d", [(1, "a b  d"), (10, "a  c  d")]),
        ("a[b:[c:d:2]:1]e", [(1, "abe"), (2, "ace"), (10, "ade")]),
        ("a [unbalanced", [(10, "a [unbalanced")]),
        ("a [b:.5] c", [(5, "a  c"), (10, "a b c")]),
        ("((a][:b:c [d:3]", [(3, "((a][:b:c "), (10, "((a][:b:c d")]),
        ("[a|(b:1.1)]", [(i, "(b:1.1)" if i % 2 == 0 else "a") for i in range(1, 11)]),
        ("[fe|]male", [(i, "male" if i % 2 == 0 else "female") for i in range(1, 11)]),
        ("[fe|||]male", [(i, "female" if i % 4 == 1 else "male") for i in range(1, 11)]),
    ],
)
def test_editing_is_what_a1111_documents(prompt: str, expected: list):
    assert schedule(prompt, 10) == expected


def test_the_documented_landscape_changes_four_times():
    prompt = (
        "fantasy landscape with a [mountain:lake:0.25] and [an oak:a christmas tree:0.75][ in foreground::0.6]"
        "[: in background:0.25] [shoddy:masterful:0.5]"
    )
    assert schedule(prompt, 100) == [
        (25, "fantasy landscape with a mountain and an oak in foreground shoddy"),
        (50, "fantasy landscape with a lake and an oak in foreground in background shoddy"),
        (60, "fantasy landscape with a lake and an oak in foreground in background masterful"),
        (75, "fantasy landscape with a lake and an oak in background masterful"),
        (100, "fantasy landscape with a lake and a christmas tree in background masterful"),
    ]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a [{b|d{:.5] c", [(10, "a [{b|d{:.5] c")]),  # A1111's comment says otherwise, its grammar since [a|b] does this
        ("a|b [c:3]", [(10, "a|b [c:3]")]),  # a | outside of a group: the grammar has no reading, all is text
        ("(a|b) [c:3]", [(10, "(a|b) [c:3]")]),
        ("[c:3] \\", [(10, "[c:3] \\")]),
        (r"\[a:3\] [b:2]", [(2, r"\[a:3\] "), (10, r"\[a:3\] b")]),
        ("[a:b:c:3]", [(10, "[a:b:c:3]")]),
        ("[a:b:0]", [(10, "b")]),
        ("[a:b:-1]", [(10, "b")]),
        ("[a:b:25]", [(10, "a")]),
        ("[a:b:1e999]", [(10, "a")]),  # A1111 raises
        ("[a:b:1.0]", [(10, "a")]),  # with a point it is a fraction,
        ("[a:b:1]", [(1, "a"), (10, "b")]),  # without one a step
        ("[a::3]b", [(3, "ab"), (10, "b")]),
        ("[[a:b:4]|c]", [(i, "c" if i % 2 == 0 else "a" if i <= 4 else "b") for i in range(1, 11)]),
        ("[[a:3]", [(3, "["), (10, "[a")]),
        ("([a:3])", [(3, "()"), (10, "(a)")]),
    ],
)
def test_editing_at_its_edges(prompt: str, expected: list):
    assert schedule(prompt, 10) == expected


def test_a_fraction_means_the_same_for_every_number_of_steps():
    assert [schedule("[a:b:0.4]", n)[0] for n in (5, 10, 50)] == [(2, "a"), (4, "a"), (20, "a")]


def test_steps_are_looked_up_as_a1111_does_from_zero():
    entries = schedule("[a|b]", 4)
    assert [entries[current(entries, step)].text for step in range(4)] == ["a", "a", "b", "a"]
    entries = schedule("[a:b:2]", 4)
    assert [entries[current(entries, step)].text for step in range(4)] == ["a", "a", "a", "b"]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", [("a cat", 1.0)]),
        ("a cat AND a dog", [("a cat", 1.0), (" a dog", 1.0)]),
        ("a cat :1.2 AND a dog :-0.5 ", [("a cat", 1.2), (" a dog", -0.5)]),
        ("a:1:2", [("a:1", 2.0)]),
        ("(a:1.2)", [("(a:1.2)", 1.0)]),
        ("SAND AND ANDROID", [("SAND", 1.0), (" ANDROID", 1.0)]),
        ("a:.5", [("a", 0.5)]),
        ("AND", [("", 1.0), ("", 1.0)]),
    ],
)
def test_and_divides_a_prompt_into_weighted_conditions(prompt: str, expected: list):
    assert parts(prompt) == expected


@law
@given(prompts, st.integers(1, 12))
def test_no_prompt_is_an_error_and_its_schedule_covers_all_steps(prompt: str, steps: int):
    for part in parts(prompt):
        entries = schedule(part.text, steps)
        assert [entry.until for entry in entries] == sorted({entry.until for entry in entries})
        assert entries[-1].until == steps and entries[0].until >= 1
        assert all(spans(entry.text) for entry in entries)


@law
@given(prompts.filter(lambda text: "BREAK" not in text))
def test_a_text_with_a_backslash_before_each_bracket_and_backslash_is_read_as_itself(text: str):
    assert spans(re.sub(r"[()\[\]\\]", r"\\\g<0>", text)) == [(text, 1.0)]


@law
@given(st.text(st.characters(exclude_characters="\\[]():|")), st.integers(1, 9))
def test_a_prompt_without_brackets_is_one_entry(text: str, steps: int):
    assert schedule(text, steps) == [(steps, text)]


@pytest.mark.parametrize("bracket", ["[", "(", "[a:", "[[a:1]|", "]"])
def test_prompts_may_nest_deeper_than_python_calls(bracket: str):
    deep = bracket * 2000
    assert schedule(deep, 2) and spans(deep)
    assert schedule("[" * 2000 + "a" + ":1]" * 2000, 2) == [(1, ""), (2, "a")]


# --- tags


def test_tags_are_taken_out_wherever_they_stand():
    found = extract("a <lora:style:0.8>robot<lora:my face>, [<lyco:b:0.2:1>x:y:3]")
    assert found.text == "a robot, [x:y:3]"
    assert found.tags == (Tag("style", parse("0.8")), Tag("my face", Strength()), Tag("b", parse("te=0.2:unet=1")))


def test_tags_take_the_whole_grammar_of_strengths():
    tag = extract("<lora:a:unet=0.8@0-0.4,0.2@0.4-1:te=0.5:mid=0>").tags[0]
    assert [tag.strength.at(f, "unet.up_blocks.0.resnets.0.conv1") for f in (0, 0.4)] == [0.8, 0.2]
    assert tag.strength.at(0, "text_encoder.x") == 0.5 and tag.strength.at(0, "unet.mid_block.resnets.0.conv1") == 0


def test_networks_of_other_kinds_are_taken_out_and_told():
    assert extract("a <hypernet:x:1> b").text == "a  b"
    assert extract("a <hypernet:x:1> b").ignored == ("<hypernet:x:1>",)
    assert extract("1 < 2 > 0 <3 <b>").text == "1 < 2 > 0 <3 <b>"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a <lora:style:0.8", "no complete tag"),
        ("a <lora>", "no complete tag"),
        ("a <lora style>", "no complete tag"),
        ("a < lora:style:1>", "no complete tag"),
        ("a <lora::1>", "no adapter"),
        ("a <LoRA:style:1>", "small letters"),
        ("a <lora:style:much>", "'much' is no strength"),
        ("a <lora:style:1:2:3>", "3 plain numbers"),
        ("a <lora:style:unett=1>", "'unett'.*did you mean unet"),
        ("a <lora:style:1> <lora:style:0.5>", "keep one"),
    ],
)
def test_a_malformed_tag_is_one_clear_line(prompt: str, message: str):
    with pytest.raises(SdloraError, match=message) as error:
        extract(prompt)
    assert "\n" not in str(error.value)


@law
@given(prompts)
def test_only_tags_for_loras_can_be_errors(prompt: str):
    try:
        found = extract(prompt)
    except SdloraError:
        assert "<" in prompt and ("lora" in prompt.lower() or "lyco" in prompt.lower())
    else:
        assert "<" in prompt or (found.text == prompt and not found.tags)


@law
@given(st.text(st.characters(exclude_characters="<>:"), min_size=1).map(str.strip).filter(bool), st.floats(-9, 9))
def test_a_printed_tag_is_read_as_itself(name: str, eta: float):
    tag = Tag(name, parse(str(eta)))
    assert extract(f"a {tag}b").tags == (tag,)
    assert extract(f"a {tag}b").text == "a b"


# --- names of files


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    for name in ("one/style.safetensors", "one/sub/Robot.safetensors", "two/face-v2.safetensors", "two/note.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return [tmp_path / "one", tmp_path / "two"]


@pytest.mark.parametrize(
    ("name", "file"), [("style", "one/style"), ("Robot", "one/sub/Robot"), ("ROBOT", "one/sub/Robot"), ("face-v2", "two/face-v2")]
)
def test_names_are_stems_of_files_capitals_aside(folders: list[Path], tmp_path: Path, name: str, file: str):
    assert find(name, listed(folders), folders) == tmp_path / f"{file}.safetensors"


def test_a_name_without_a_file_says_where_it_was_looked_for_and_what_is_near(folders: list[Path]):
    with pytest.raises(SdloraError, match=r"no stile\.safetensors in .*one, .*two; did you mean style\?"):
        find("stile", listed(folders), folders)
    with pytest.raises(SdloraError, match="--adapters FOLDER"):
        find("style", {}, [])
    with pytest.raises(SdloraError, match="no folder"):
        listed([folders[0] / "nowhere"])


def test_a_name_that_fits_several_files_is_refused_unless_one_fits_letter_by_letter(folders: list[Path]):
    (folders[1] / "Style.safetensors").touch()
    assert find("style", listed(folders), folders) == folders[0] / "style.safetensors"
    with pytest.raises(SdloraError, match="several"):
        find("STYLE", listed(folders), folders)
    (folders[1] / "style.safetensors").touch()
    with pytest.raises(SdloraError, match="several"):
        find("style", listed(folders), folders)
