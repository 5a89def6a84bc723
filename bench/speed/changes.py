"""Changes of one user: SegmentQL and mercurius run the same statement, and pgbench runs it with nothing around it."""

import re
from collections.abc import Sequence
from subprocess import PIPE, run

from bench.databases import program
from bench.figures import said
from bench.seeds import SCATTER
from bench.speed import rounds, works
from bench.speed.competitors import Competitor
from bench.speed.data import SEGMENTS, Data
from bench.speed.rounds import Found, Plan
from bench.speed.stage import Stage

# Like the other's; each connection changes users of its own, and who is changed is in the segment not yet.
SCRIPT = """
\\set done :done + 1
\\set n (:client_id * 3000 + :done) % {users}
SELECT change_user_segments_1(
    'pgbench', 'changeUserSegments', gen_random_uuid()::text, '\\x00', 0, (:n * {scatter} % 4294967296)::text,
    ARRAY['S' || ((:n * 7 + {turn} * 149) % {segments} + 1)], 1, NULL, NULL);
"""


def measure(stage: Stage, who: Sequence[Competitor], plan: Plan) -> tuple[Found, list[float]]:
    """All rounds, and in each how many bare statements there were a second."""
    found: Found = {competitor.name: [] for competitor in who}
    bare = []
    for number in range(plan.rounds):
        one = rounds.measure(stage, works.CHANGE, rounds.in_turn(who, number), Plan(1, plan.seconds))
        found = {name: measured + one[name] for name, measured in found.items() if name in one}
        bare.append(_pgbench(stage.data, plan.seconds))
        said(f"change: pgbench: {bare[-1]:,.0f}/s")
    return found, bare


def _pgbench(data: Data, seconds: float) -> float:
    script = data.database.folder / "change.sql"
    script.write_text(SCRIPT.format(users=data.users, scatter=SCATTER, turn=6 + works.turn(), segments=SEGMENTS))
    address = data.database.url.query
    command = [str(program("pgbench")), "-n", "-c", "32", "-j", "2", "-M", "prepared", "-D", "done=0"]
    command += ["-T", f"{seconds:.0f}", "-f", str(script), "-h", str(address["host"]), "-p", str(address["port"])]
    command += ["-U", data.database.url.username or "", data.database.url.database or ""]
    printed = run(command, stdout=PIPE, text=True, check=True, timeout=seconds + 60).stdout
    rate = re.search(r"tps = ([\d.]+)", printed)
    assert rate is not None, printed
    return float(rate[1])
