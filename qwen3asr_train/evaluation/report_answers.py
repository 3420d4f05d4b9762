"""The report's samples of reinforcement learning: what was said, the answers, their rewards."""

from collections.abc import Mapping, Sequence
from html import escape

MAX_UTTERANCES = 8


def answers_section(rows: Sequence[Mapping]) -> str:
    """Utterances from the whole of training with all their answers, as HTML; "" without rows.

    A row has ``step``, ``reference``, ``language``, ``answers`` with their ``rewards``, and
    ``parts``: name of a reward -> its value for each answer.
    """
    if not rows:
        return ""
    places = {round(i * (len(rows) - 1) / (MAX_UTTERANCES - 1)) for i in range(MAX_UTTERANCES)}
    return "".join(_utterance(rows[place]) for place in sorted(places))


def _utterance(row: Mapping) -> str:
    names = sorted(row["parts"])
    head = "".join(f"<th>{escape(name)}</th>" for name in ("answer", "reward", *names))
    order = sorted(range(len(row["answers"])), key=lambda i: -row["rewards"][i])
    lines = "".join(
        f'<tr><td dir="auto">{escape(row["answers"][i])}</td><td>{row["rewards"][i]:.3f}</td>'
        + "".join(f"<td>{row['parts'][name][i]:.3g}</td>" for name in names) + "</tr>"
        for i in order)
    context = f"<p>context: {escape(row['context'][:200])}</p>" if row.get("context") else ""
    return (f'<div class="panel"><p>step {row["step"]}, {escape(str(row["language"]))}: '
            f'<strong dir="auto">{escape(row["reference"] or "(no speech)")}</strong></p>{context}'
            f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>")
