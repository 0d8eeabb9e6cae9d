"""Files of runs of learning that may go on: all that a CONCEPT holds, and the state of its optimiser and generator."""
import json
from dataclasses import asdict

from ..host.sampling import Fingerprint
from .concepts import Concept, WordTable
from .watching import Look
from .word_files import read_concept

KEY, VERSION = "palimpsest.run", 1
SUFFIX = ".run.safetensors"


def run_file(concept: Concept) -> tuple[dict, dict]:
    """(the tensors of a CONCEPT's file, its metadata). ValueError where nobody may go on from it."""
    state = concept.state
    if state is None:
        raise ValueError(f"The CONCEPT of {len(concept.losses)} steps holds nothing to go on from, as those of Imagic, "
                         "of Forgedit and of a word's file do: switch resume off.")
    tensors = {"generator": state["generator"], **{f"theta.{i}": value for i, value in enumerate(state["theta"])}}
    tensors |= {f"moments.{i}.{name}": value for i, found in state["optimiser"]["state"].items()
                for name, value in found.items()}
    tensors |= {f"{kind}.{name}": value for kind in ("weights", "compact")
                for name, value in getattr(concept, kind).items()}
    tensors |= {f"words.{name}.{encoder}": v for name, found in concept.words.items() for encoder, v in found.items()}
    tensors |= {f"tables.{name}.{part}.{encoder}": v for name, table in concept.tables.items()
                for part, found in (("vectors", table.vectors), ("added", table.added)) for encoder, v in found.items()}
    watch = state.get("watch")
    if watch:
        tensors |= {f"{kind}.{i}": value for kind in ("average", "values") for i, value in enumerate(watch[kind])}
        tensors |= {f"pictures.{i}": look.picture for i, look in enumerate(watch["looks"]) if look.picture is not None}
    about = {"version": VERSION, "fingerprint": asdict(concept.fingerprint), "notes": dict(concept.notes),
             "losses": concept.losses, "groups": state["optimiser"]["param_groups"],
             "places": {name: table.places for name, table in concept.tables.items()},
             "watch": watch and {"best": watch["best"], "looks": [(look.step, look.concept, look.prior)
                                                                  for look in watch["looks"]]}}
    return {name: value.contiguous() for name, value in tensors.items()}, {KEY: json.dumps(about)}


def load_run(path) -> Concept:
    """The CONCEPT of a run's file."""
    return read_concept(path, KEY, VERSION, "run of learning", _concept)


def _concept(tensors, about) -> Concept | None:
    listed = "theta", "average", "values", "pictures"
    found: dict[str, dict] = {kind: {} for kind in (*listed, "moments", "weights", "compact", "words", "tables")}
    for name, value in tensors.items():
        kind, _, name = name.partition(".")
        if kind in ("weights", "compact"):
            found[kind][name] = value
        elif kind in listed:
            found[kind][int(name)] = value
        elif kind in found:
            first, name = name.split(".", 1)
            found[kind].setdefault(first, {})[name] = value
    if len({frozenset(moments) for moments in found["moments"].values()}) > 1:
        return None
    theta, average, values = ([found[kind][i] for i in range(len(found[kind]))] for kind in listed[:3])
    state = {"theta": theta, "generator": tensors["generator"],
             "optimiser": {"state": {int(i): moments for i, moments in found["moments"].items()},
                           "param_groups": about["groups"]}}
    watch, looks = about.get("watch"), ()
    if watch:
        looks = tuple(Look(*numbers, picture=found["pictures"].get(i)) for i, numbers in enumerate(watch["looks"]))
        state["watch"] = {"looks": looks, "best": watch["best"], "average": average, "values": values}
        looks = looks[:watch["best"] + 1]
    tables = {}
    for name, parts in found["tables"].items():
        vectors, added = ({key.partition(".")[2]: v for key, v in parts.items() if key.startswith(f"{part}.")}
                          for part in ("vectors", "added"))
        tables[name] = WordTable(vectors, tuple(map(tuple, about["places"][name])), added)
    return Concept(found["words"], found["weights"], Fingerprint(**about["fingerprint"]), tuple(about["losses"]),
                   about["notes"], state, looks, tables=tables, compact=found["compact"])
