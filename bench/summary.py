"""What the benchmarks of edits report: means with their 95 % intervals, and tables of them.

A line is one edit: its case, kind, inversion, editor and numbers. An entry is what the lines of a row say together:
{"cases": N, number: mean, "intervals": {number: [low, high]}, "kinds": {kind: an entry}}.
Intervals of shares of successes are Wilson's, those of other means are bootstrapped.
"""
import statistics
from dataclasses import dataclass

import torch

from .stats import bootstrap, paired_bootstrap, wilson

NOBODY = "no editor"  # of the rows that are floors and ceilings
ABOUT = "case", "kind", "inversion", "editor"
TRIALS = "success", "asked"  # numbers that are 0 or 1
SUCCEEDS = 0.8  # a row needs this share of successes to be the choice for a kind of edit


@dataclass(frozen=True)
class Column:
    """A number in a table. unit: "%" for a share, " dB", or "" for a plain number without an interval."""
    number: str
    title: str
    unit: str = ""

    def cell(self, entry) -> str:
        mean = entry.get(self.number)
        if mean is None:
            return ""
        low, high = entry.get("intervals", {}).get(self.number, (mean, mean))
        reach = (high - low) / 2
        if self.unit == "%":
            return f"{mean:.0%}" + (f" ±{100 * reach:.0f}" if reach else "")
        if not self.unit:
            return f"{mean:.0f}" if mean >= 10 else f"{mean:.3g}"
        return f"{mean:.1f}" + (f" ±{reach:.1f}" if reach else "") + self.unit


def entry(lines, numbers, intervals=()) -> dict:
    """intervals: the numbers that get one."""
    values = {n: [r[n] for r in lines if r.get(n) is not None] for n in numbers}
    found = {"cases": len(lines), **{n: round(statistics.fmean(v), 4) if v else None for n, v in values.items()}}
    return {**found, "intervals": {n: interval(n, values[n]) for n in intervals if values.get(n)}}


def interval(number, values) -> list:
    if number in TRIALS:
        ends = wilson(statistics.fmean(values), len(values))
    else:
        ends = bootstrap(torch.tensor(values), torch.Generator().manual_seed(0))
    return [round(end, 4) for end in ends]


def summary(lines, kinds, compared, base="plain") -> dict:
    """{"inversion, editor": its entry}, with paired differences from the editor `base` on the same inversion.

    compared: the numbers with intervals, which each kind of edit has too.
    """
    rows: dict = {}
    for line in lines:
        rows.setdefault((line["inversion"], line["editor"]), {})[line["case"]] = line
    numbers = list(dict.fromkeys(n for line in lines for n in line if n not in ABOUT))
    found = {}
    for (inversion, editor), mine in rows.items():
        made = entry(mine.values(), numbers, compared)
        made["kinds"] = {k: entry(of, compared, compared) for k in kinds
                         if (of := [r for r in mine.values() if r["kind"] == k])}
        other = rows.get((inversion, base), {})
        for n in compared if editor != base and inversion != NOBODY else ():
            pairs = [(r[n], other[case][n]) for case, r in mine.items()
                     if case in other and None not in (r.get(n), other[case].get(n))]
            if len(pairs) > 1:
                difference = paired_bootstrap(*torch.tensor(pairs).double().T, torch.Generator().manual_seed(0))
                made[f"{n}, over {base}"] = [round(v, 4) for v in difference]
        found[f"{inversion}, {editor}"] = made
    return found


def table(found, columns, extra=()) -> str:
    """One line a row. extra: (title, function of a row's name) of further columns."""
    columns = [c for c in columns if any(r.get(c.number) is not None for r in found.values())]
    titles = [*(c.title for c in columns), *(title for title, _ in extra)]
    return "\n".join([line("", *titles), "|---" * (1 + len(titles)) + "|",
                      *(line(name, *(c.cell(r) for c in columns), *(cell(name) for _, cell in extra))
                        for name, r in found.items())])


def table_by_kind(found, kinds, columns) -> str:
    """One line a row, one column a kind of edit."""
    return "\n".join([line("", *kinds), "|---" * (1 + len(kinds)) + "|",
                      *(line(name, *(", ".join(filter(None, (c.cell(r["kinds"].get(k, {})) for c in columns)))
                                     for k in kinds)) for name, r in found.items())])


def line(*cells) -> str:
    return "| " + " | ".join(cells) + " |"


def of_the_way(found, name) -> str:
    """The share of the way from fresh noise to the perfect sampler, of the mean dB to the exact target by kind."""
    kinds = [k for k, r in found[name]["kinds"].items() if r.get("target_psnr") is not None]
    ends = [found[f"{NOBODY}, {end}"]["kinds"] for end in ("fresh noise", "identifiable")]
    kinds = [k for k in kinds if all(k in end for end in ends)]
    if not kinds:
        return ""
    low, high, row = (sum(of[k]["target_psnr"] for k in kinds) for of in (*ends, found[name]["kinds"]))
    return f"{(row - low) / (high - low):.0%}"


def chosen(found, kind, told=lambda name: False) -> str | None:
    """The row nearest to the exact target among those that succeed in SUCCEEDS of a kind's cases.

    If none does, among those that succeed most often. told: which rows may not be chosen.
    """
    each = {name: r["kinds"][kind] for name, r in found.items()
            if not name.startswith(NOBODY) and kind in r["kinds"] and not told(name)}
    if not each:
        return None
    most = min(SUCCEEDS, max(r["success"] for r in each.values()))
    return max((name for name, r in each.items() if r["success"] >= most), key=lambda n: each[n]["target_psnr"])


def best(public, held_out, kinds, told) -> list:
    """[(kind, a row, its entry)] twice a kind: of all rows, and of those that are not `told`.

    They are chosen by the public split's entries, and the held-out split's are returned.
    """
    found = []
    for kind in kinds:
        for barred in (lambda name: False, told):
            row = chosen({n: r for n, r in public.items() if n in held_out and kind in held_out[n]["kinds"]}, kind,
                         barred)
            found.append((kind, row, held_out[row]["kinds"][kind] if row else {}))
    return found
