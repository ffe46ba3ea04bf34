"""What came of the cases: in the terminal, as JSON and as a page."""

import collections
from collections.abc import Mapping, Sequence
from typing import Any


def counted(
    generator: str, seed: int, records: Sequence[Mapping[str, Any]], among: str = ""
) -> dict[str, Any]:
    """The counts, and every failure with what makes it again."""
    by_command: dict[str, collections.Counter[str]] = {}
    for record in records:
        ending = "failed" if record["broken"] else record["ending"]
        by_command.setdefault(record["command"], collections.Counter())[ending] += 1
    again = f"python -m tests.faults {generator} --seed {seed}{among} --only"
    failures = [
        {
            "again": f"{again} {record['case']}",
            **{name: record[name] for name in ("case", "command", "ending", "line", "broken")},
        }
        for record in sorted(records, key=lambda record: record["case"])
        if record["broken"]
    ]
    return {
        "generator": generator,
        "seed": seed,
        "cases": len(records),
        "failed": len(failures),
        "by_command": {name: dict(counts) for name, counts in sorted(by_command.items())},
        "kinds": dict(kinds(failures)),
        "failures": failures,
    }


def kinds(failures: Sequence[Mapping[str, Any]]) -> collections.Counter[str]:
    """How many cases broke each kind of promise."""
    return collections.Counter(
        kind for one in failures for kind in {broken["kind"] for broken in one["broken"]}
    )


def said(found: Mapping[str, Any]) -> str:
    """The counts for the terminal, with one case of each kind of failure."""
    lines = [
        f"{found['generator']}, seed {found['seed']}: {found['cases']} cases, "
        f"{found['failed']} failed"
    ]
    for name, counts in found["by_command"].items():
        listed = ", ".join(f"{count} {ending}" for ending, count in sorted(counts.items()))
        lines.append(f"  {name:12}{listed}")
    shown = set()
    for kind, count in sorted(found["kinds"].items(), key=lambda pair: -pair[1]):
        lines.append(f"{count} of them: {kind}")
        for failure in found["failures"]:
            seen = [b["seen"] for b in failure["broken"] if b["kind"] == kind]
            if seen and (kind, failure["command"]) not in shown:
                shown.add((kind, failure["command"]))
                lines += [f"    {failure['again']}", f"      {failure['line'][:600]}"]
                lines.append(f"      {seen[0][:400]}")
    return "\n".join(lines)


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The page of several generators' results."""
    lines = [
        "# Faults",
        "",
        "`python -m tests.faults` gives the commands odd options, damages the files that they "
        "read, and cuts them short at random moments, each case drawn from its seed and number. A "
        "case "
        "fails where a command ends with an exit status of no meaning, says more or less than one "
        "line of what is wrong, loses or changes a file that is not its own, claims a figure that "
        "an undisturbed run does not have, takes more than two minutes, or does not end with the "
        "undisturbed figures once the fault is over.",
        "",
    ]
    for found in results:
        lines += [
            f"## {found['generator'].capitalize()}",
            "",
            f"Seed {found['seed']}: {found['cases']:,} cases, {found['failed']:,} failed.",
            "",
            "| command | cases | outcomes | failed |",
            "|---|--:|---|--:|",
        ]
        for name, counts in found["by_command"].items():
            ended = {ending: n for ending, n in counts.items() if ending != "failed"}
            listed = ", ".join(f"{n:,} {ending}" for ending, n in sorted(ended.items()))
            total, failed = sum(counts.values()), counts.get("failed", 0)
            lines.append(f"| {name} | {total:,} | {listed} | {failed:,} |")
        lines.append("")
        for failure in found["failures"]:
            broken = "; ".join(sorted({one["kind"] for one in failure["broken"]}))
            lines.append(f"- {broken}: `{failure['again']}`")
        lines += [""] if found["failures"] else []
    return "\n".join(lines)
