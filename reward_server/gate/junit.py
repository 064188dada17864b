"""Writes a check as a JUnit XML report, which CI services read: one test case per clip.

A clip below the threshold (with a gold file: whose verdict changed) is a failure, and one without a verdict an error.
Elements, attributes and their order are those of the strict schema of Ant's JUnit task.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree as ET

from reward_server.gate.checked import Checked, CheckedClip
from reward_server.gate.rules import Verdict
from reward_server.report.page import shown


def write_junit(path: Path | None, checked: Checked) -> None:
    """Write the report; do nothing if `path` is None. Raises OSError."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        tree = ET.ElementTree(junit(checked))
        ET.indent(tree)
        tree.write(path, encoding="utf-8", xml_declaration=True)


def junit(checked: Checked) -> ET.Element:
    """The report. XML cannot hold control characters, so names and reasons have them as escapes."""
    # Clips are scored in batches, so each case gets the mean of their times.
    each_s = checked.seconds / max(1, len(checked.clips))
    errors = checked.counts[Verdict.UNSCORED]
    failures = sum(_failed(clip) for clip in checked.clips)
    suites = ET.Element("testsuites")
    suite = ET.SubElement(
        suites,
        "testsuite",
        id="0",
        package="motion-reward",
        name="motion-reward check",
        timestamp=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        hostname="localhost",
        tests=str(len(checked.clips)),
        failures=str(failures),
        errors=str(errors),
        time=f"{checked.seconds:.3f}",
    )
    properties = ET.SubElement(suite, "properties")
    about = {"rule": checked.rule.told, "discriminators": checked.model.discriminator_version}
    for name, value in {**about, "weights_digest": checked.model.weights_digest}.items():
        ET.SubElement(properties, "property", name=name, value=shown(value))
    for clip in checked.clips:
        _case(suite, clip, each_s)
    ET.SubElement(suite, "system-out").text = shown(checked.headline)
    ET.SubElement(suite, "system-err").text = "\n".join(map(shown, checked.notes))
    return suites


def _case(suite: ET.Element, clip: CheckedClip, seconds: float) -> None:
    name = shown(str(clip.path))
    case = ET.SubElement(suite, "testcase", name=name, classname="motion-reward.check", time=f"{seconds:.3f}")
    if clip.verdict is Verdict.UNSCORED:
        _reason(case, "error", clip)
    elif _failed(clip):
        _reason(case, "failure", clip)


def _reason(case: ET.Element, element: str, clip: CheckedClip) -> None:
    told = shown(clip.judgement.reason) or clip.verdict.value
    if clip.changed and clip.before:
        told = f"was {clip.before.verdict.value}, is {clip.verdict.value}. {told}"
    kind = "changed" if clip.changed else clip.verdict.value
    ET.SubElement(case, element, type=kind, message=told).text = told


def _failed(clip: CheckedClip) -> bool:
    return clip.changed if clip.before else clip.verdict is Verdict.BELOW
