"""What a reader of the figures must know about a slice: (code, text) for the report."""

from hesscli.data.tokens import Packed

Note = tuple[str, str]


def fewer(name: str, available: int, limit: int, left_over: int = 0) -> list[Note]:
    """The data set ended before the slice was full."""
    if available >= limit:
        return []
    rest = f"; {_count(left_over, 'token')} at its end left over" if left_over else ""
    return [("fewer-sequences", f"{name} holds {_count(available, 'sequence')}, fewer than the limit of {limit}{rest}")]


def short(length: int, max_length: int) -> list[Note]:
    """The text fills not even one sequence."""
    if length >= max_length:
        return []
    return [("short-sequence", f"the text holds {_count(length, 'token')}, fewer than one sequence of {max_length}")]


def passed_over(passed: int) -> list[Note]:
    """Rows that hold no loss term were left out."""
    if not passed:
        return []
    return [("rows-without-loss", f"{_count(passed, 'row')} without a loss term took no part")]


def cut(num_cut: int, length: int) -> list[Note]:
    """Rows of text were longer than a sequence."""
    if not num_cut:
        return []
    return [("truncated-rows", f"{_count(num_cut, 'row')} of text cut to {length} tokens")]


def borders(packed: Packed, has_eos: bool) -> list[Note]:
    """Documents share rows: what attends to what, and whether a token stands between them."""
    if packed.num_documents < 2:
        return []
    text = f"{packed.num_documents} documents are packed end to end, and attention crosses their borders"
    notes = [("packed-documents", text)]
    if not has_eos:
        notes.append(("no-eos-token", "the tokenizer has no eos token: nothing stands between packed documents"))
    return notes


def masked(seed: int) -> list[Note]:
    """Which tokens are predicted was drawn."""
    shares = "of 15 % of the tokens, 80 % are hidden, 10 % replaced and 10 % left as they are"
    return [("masked-tokens", f"{shares}, drawn by seed {seed}: the loss is on these")]


def unused(columns: tuple[str, ...], num_token_types: int) -> list[Note]:
    """A column that would change what the model computes is not read."""
    found = []
    if "position_ids" in columns:
        found.append(("unused-column", "the column position_ids is not used: positions count from the row's start"))
    if "token_type_ids" in columns and not num_token_types:
        found.append(("unused-column", "the column token_type_ids is not used: the model reads none"))
    return found


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
