"""The README: its tour works as it is typed, and its settings are those there are."""

import asyncio
import dataclasses
import json
import re
from typing import Any

from conftest import ROOT, Serve

from server.setting_kinds import Kind
from server.settings import PREFIX, Settings

README = (ROOT / "README.md").read_text()
# A command, and what it answers.
STEP = re.compile(r"```sh\n(curl .*?)```\n```json\n(.*?)```", re.DOTALL)


URL = re.compile(r'"url":"([^"]*)"')


async def test_the_tour_answers_what_the_readme_says(serve: Serve) -> None:
    steps = STEP.findall(README)
    assert len(steps) == README.count("```sh\ncurl") == 10
    url = ""
    async with serve(serve_tasks=1) as client:
        for command, expected in steps:
            here = command.replace("http://127.0.0.1:8080", str(client.http.base_url).rstrip("/"))
            answer = await _typed(here)
            # What goes on in the background is asked for until it is done.
            while '"QUEUED"' in answer or '"RUNNING"' in answer:
                answer = await _typed(here)
            assert _with_gaps(json.loads(answer), json.loads(expected)) == json.loads(expected), command
            if found := URL.search(answer):
                url = found[1]
        assert (await client.http.get(url)).text.splitlines()[0] == "user_id,segment,operation,at"


async def _typed(command: str) -> str:
    curl = await asyncio.create_subprocess_exec("bash", "-c", command, stdout=asyncio.subprocess.PIPE)
    answer, _ = await curl.communicate()
    assert curl.returncode == 0, command
    return answer.decode()


def _with_gaps(found: Any, expected: Any) -> Any:
    """What was found, with a gap where the README has one."""
    if expected == "…":
        assert isinstance(found, str | int)
        return expected
    if isinstance(found, dict) and isinstance(expected, dict):
        return {name: _with_gaps(value, expected.get(name)) for name, value in found.items()}
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        return [_with_gaps(*pair) for pair in zip(found, expected, strict=True)]
    return found


def settings_table() -> str:
    rows = ["| setting | default | may be | |", "|---|---|---|---|"]
    for setting in dataclasses.fields(Settings):
        kind: Kind = setting.metadata["kind"]
        default = "" if setting.default in (None, ()) else f"`{setting.default}`"
        rows.append(
            f"| `{PREFIX}{setting.name.upper()}` | {default} | {kind.what} | {setting.metadata['description']} |"
        )
    return "\n".join(rows)


def test_the_settings_table_is_current() -> None:
    written = README.partition("<!-- settings -->\n")[2].partition("\n<!-- /settings -->")[0]
    assert written == settings_table()
