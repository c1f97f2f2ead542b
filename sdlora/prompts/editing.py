"""Prompt editing: `[from:to:when]`, `[to:when]`, `[from::when]` and the alternation `[a|b]`, nested at will.

`when` with a point is a fraction of all steps, without one a step. The grammar is AUTOMATIC1111's (modules/prompt_parser.py): a bracket
that is no group of it is text, and so is the whole prompt where a `|` stands outside of a group or a backslash has nothing to escape.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

SCANNER = re.compile(r"(?:\\.|[^\\\[\]():|])+|[\[\]():|]")
WHEN = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")

Nodes = list["str | Edit | Alternation"]


class Entry(NamedTuple):
    """The prompt is `text` up to the step `until`."""

    until: int
    text: str


@dataclass(frozen=True, eq=False)
class Edit:
    before: Nodes
    after: Nodes
    when: str  # as written: "5" is a step, "0.5" a fraction

    def step(self, steps: int, past: int) -> int:
        """The last step, of 1 … steps, at which the text is `before`; below 1 where it never is.  past: see `schedule`."""
        value = (float(self.when) - (past > 0)) * steps if "." in self.when else float(self.when) - past
        return int(max(-1.0, min(float(steps), value)))


@dataclass(frozen=True, eq=False)
class Alternation:
    options: list[Nodes]  # option (step − 1) mod n at step 1, 2, …


@dataclass(eq=False)
class _Bracket:
    """One that is open while the prompt is read: what stands between its separators so far."""

    opener: str
    fields: list[Nodes] = field(default_factory=lambda: [[]])
    separators: list[str] = field(default_factory=list)


def schedule(prompt: str, steps: int, past: int = 0) -> list[Entry]:
    """What the prompt is, step by step: entries with rising `until`, the last one `steps`. Texts keep their emphasis. Never an error.

    schedule("a [cat:dog:0.4]", 10) == [(4, "a cat"), (10, "a dog")]

    past  of the second pass of a hires picture the steps of the first: `when` goes on counting there, from 1.0 or from that number
    """
    try:
        nodes = _parsed(prompt)
    except ValueError:
        return [Entry(steps, prompt)]
    return [Entry(step, _text(nodes, step, steps, past)) for step in sorted({steps, *_changes(nodes, steps, past)})]


def current(entries: list[Entry], step: int) -> int:
    """The index of the entry that holds at `step`, counted from 0: the first whose `until` is `step` or more.

    AUTOMATIC1111 compares the same way: its entries count steps from 1 and its sampler from 0, so an entry holds until + 1 steps
    when it is the first, and [a|b] begins with a, a, b. Kept, because its pictures depend on it.
    """
    return next((i for i, entry in enumerate(entries) if step <= entry.until), len(entries) - 1)


def _parsed(prompt: str) -> Nodes:
    """The prompt as text and groups, in one pass. ValueError if the grammar has no reading of it."""
    found: Nodes = []
    stack: list[_Bracket] = []
    end = 0
    for match in SCANNER.finditer(prompt):
        if match.start() != end:
            break  # a backslash that escapes nothing
        word, end = match[0], match.end()
        inside = stack[-1] if stack else None
        if word in "[(":
            stack.append(_Bracket(word))
        elif word in "])" and inside and (group := _group(inside, word)) is not None:
            stack.pop()
            (stack[-1].fields[-1] if stack else found).extend(group)
        elif word in "])":
            found += [*_opened(stack), word]
            stack.clear()
        elif word in ":|" and inside:
            inside.separators.append(word)
            inside.fields.append([])
        elif word == "|":
            raise ValueError("a | outside of a group")
        else:
            (inside.fields[-1] if inside else found).append(word)
    if end != len(prompt):
        raise ValueError("a backslash that escapes nothing")
    return found + _opened(stack)


def _group(bracket: _Bracket, closer: str) -> Nodes | None:
    """What the closed bracket stands for; None if it is no group."""
    fields, kinds = bracket.fields, set(bracket.separators)
    if closer == ")":
        return ["(", *_separated(bracket), ")"] if bracket.opener == "(" and bracket.separators in ([], [":"]) else None
    if bracket.opener == "(":
        return None
    if not kinds:
        return ["[", *fields[0], "]"]
    if kinds == {"|"}:
        return [Alternation(fields)]
    last = fields[-1]
    if kinds == {":"} and len(fields) <= 3 and len(last) == 1 and isinstance(last[0], str) and (when := WHEN.fullmatch(last[0])):
        return [Edit(fields[0] if len(fields) == 3 else [], fields[-2], when[1])]
    return None


def _opened(stack: list[_Bracket]) -> Nodes:
    """Brackets that are no groups after all, as text; the groups inside them stay groups."""
    if any("|" in bracket.separators for bracket in stack):
        raise ValueError("a | outside of a group")
    return [node for bracket in stack for node in (bracket.opener, *_separated(bracket))]


def _separated(bracket: _Bracket) -> Nodes:
    first, *others = bracket.fields
    pairs = zip(bracket.separators, others, strict=True)
    return [*first, *(node for separator, nodes in pairs for node in (separator, *nodes))]


def _changes(nodes: Nodes, steps: int, past: int) -> Iterator[int]:
    todo = list(nodes)
    while todo:  # a stack of its own: prompts may nest deeper than Python calls
        match todo.pop():
            case Edit() as edit:
                if edit.step(steps, past) >= 1:
                    yield edit.step(steps, past)
                todo += edit.before + edit.after
            case Alternation(options):
                yield from range(1, steps + 1)
                todo += [node for option in options for node in option]


def _text(nodes: Nodes, step: int, steps: int, past: int) -> str:
    words: list[str] = []
    todo = nodes[::-1]
    while todo:
        match todo.pop():
            case str(word):
                words.append(word)
            case Edit() as edit:
                todo += (edit.before if step <= edit.step(steps, past) else edit.after)[::-1]
            case Alternation(options):
                todo += options[(step - 1) % len(options)][::-1]
    return "".join(words)
