import json
import signal
import sys
import time
from collections import deque

import pytest

from hybrids.comparison.plan import Options, data_of_options, make_plan, read_plan
from hybrids.comparison.runs import last_lines, reason
from hybrids.comparison.train import Comparison, Job, Pool, Stopped, gpus


class Flag:
    received = False


def job(tmp_path, name, code, **options):
    return Job(name, [sys.executable, "-S", "-c", code], tmp_path / f"{name}.log", **options)


def run(pool, jobs, watch=lambda now: None):
    return {one.name: code for one, code in pool.run(deque(jobs), watch)}


def test_each_job_ends_with_its_code_and_leaves_its_reason(tmp_path):
    jobs = [
        job(tmp_path, "good", "print('well')"),
        job(tmp_path, "refused", "import sys; print('refused: --lr: no'); print('later'); sys.exit(2)"),
        job(tmp_path, "failed", "raise RuntimeError('of memory')"),
        job(tmp_path, "killed", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
        job(tmp_path, "silent", "import sys; sys.exit(3)"),
    ]
    codes = run(Pool(2, [], Flag(), every=0.01), jobs)
    assert codes == {"good": 0, "refused": 2, "failed": 1, "killed": -9, "silent": 3}
    told = {one.name: reason(one.log, codes[one.name]) for one in jobs if codes[one.name]}
    assert told == {
        "refused": "--lr: no",
        "failed": "RuntimeError: of memory",
        "killed": "ended by SIGKILL (out of memory?)",
        "silent": "exit code 3 without output",
    }


def test_no_more_run_at_once_than_asked(tmp_path):
    most = []
    jobs = [job(tmp_path, str(i), "import time; time.sleep(0.1)") for i in range(5)]
    run(Pool(2, [], Flag(), every=0.01), jobs, lambda now: most.append(len(now)))
    assert max(most) == 2


def test_cores_are_shared_and_gpus_dealt_in_turn(tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    say = "import os, time; print(os.environ['OMP_NUM_THREADS'], os.environ['CUDA_VISIBLE_DEVICES']); time.sleep(0.2)"
    jobs = [job(tmp_path, str(i), say) for i in range(3)]
    run(Pool(3, ["4", "7"], Flag(), every=0.01), jobs)
    assert [last_lines(one.log) for one in jobs] == [["2 4"], ["2 7"], ["2 4"]]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert Pool(3, [], Flag()).environment(0)["OMP_NUM_THREADS"] == "5"


def test_a_stop_reaches_the_jobs_and_waits_for_them(tmp_path):
    """As a run does: on SIGTERM it saves, and ends; nothing that had not begun begins."""
    code = (
        "import signal, sys, time\n"
        "def save(*_):\n    time.sleep(0.2); print('saved'); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, save); print('ready', flush=True); time.sleep(30)"
    )
    first, second = job(tmp_path, "first", code), job(tmp_path, "second", code)
    flag = Flag()

    def watch(now):
        flag.received = last_lines(first.log) == ["ready"]

    start = time.monotonic()
    with pytest.raises(Stopped):
        run(Pool(1, [], flag, every=0.01), [first, second], watch)
    assert time.monotonic() - start < 10
    assert last_lines(first.log) == ["ready", "saved"] and not second.log.exists()


def test_a_job_that_a_stop_has_reached_is_no_failure(tmp_path):
    """Its exit code is not told: the same command starts it again."""
    code = "import sys, time; print('saving', flush=True); time.sleep(0.2); sys.exit(1)"
    one, flag = job(tmp_path, "one", code), Flag()

    def watch(now):
        flag.received = last_lines(one.log) == ["saving"]
        time.sleep(1.0 * flag.received)

    ended = []
    with pytest.raises(Stopped):
        for done, _ in Pool(1, [], flag, every=0.01).run(deque([one]), watch):
            ended.append(done)
    assert ended == []


def test_a_signal_of_the_terminal_does_not_reach_them_twice(tmp_path):
    """Ctrl-C goes to the whole foreground group: a second one would end a run before it has saved."""
    one = job(tmp_path, "one", "import os; print(os.getsid(0) == os.getpid())")
    run(Pool(1, [], Flag(), every=0.01), [one])
    assert last_lines(one.log) == ["True"]


def test_a_job_may_be_put_back_for_later(tmp_path):
    one = job(tmp_path, "one", "print('again')")
    jobs, times = deque([one]), []
    for done, _ in Pool(1, [], Flag(), every=0.01).run(jobs, lambda now: None):
        times.append(time.monotonic())
        if len(times) == 1:
            done.after = time.monotonic() + 0.3
            jobs.append(done)
    assert last_lines(one.log) == ["again", "again"] and times[1] - times[0] >= 0.3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's PR_SET_PDEATHSIG")
def test_the_jobs_of_a_killed_comparison_are_asked_to_end(tmp_path):
    import subprocess

    inner = "import time; print('ready', flush=True); time.sleep(60)"
    outer = (
        "import sys\nfrom collections import deque\nfrom pathlib import Path\n"
        "from hybrids.comparison.train import Job, Pool\n"
        "class Flag:\n    received = False\n"
        f"job = Job('one', [sys.executable, '-S', '-c', {inner!r}], Path({str(tmp_path / 'one.log')!r}))\n"
        "for _ in Pool(1, [], Flag()).run(deque([job]), lambda now: None): pass\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", outer])
    limit = time.monotonic() + 60
    while last_lines(tmp_path / "one.log") != ["ready"] and time.monotonic() < limit:
        time.sleep(0.05)
    children = ["ps", "-o", "pid=", "--ppid", str(parent.pid)]
    child = subprocess.run(children, capture_output=True, text=True).stdout.split()[0]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while subprocess.run(["ps", "-o", "stat=", "-p", child], capture_output=True, text=True).stdout[:1] not in "Z":
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_what_a_pilot_found_is_kept(tmp_path):
    """A restart has the same number of steps, whatever the machine does by then; an earlier pilot is not run again."""
    given = Options(("vae", "gan"), "8-gaussians", "seconds", 20, tmp_path)
    data = data_of_options(given)
    pool = Pool(1, [], Flag())

    def lengths():
        plan = make_plan(given, data)
        Comparison(given, plan, pool, lambda *shown: None).pilots()
        assert plan == read_plan(tmp_path)
        return [entry["lengths"] for entry in plan["recipes"].values()]

    (tmp_path / "pilots").mkdir()
    for recipe, seconds in (("vae", 0.1), ("gan", 0.04)):
        (tmp_path / "pilots" / f"{recipe}.json").write_text(json.dumps({"seconds": [seconds]}))
    assert lengths() == [[200], [500]]
    (tmp_path / "pilots" / "vae.json").write_text(json.dumps({"seconds": [99.0]}))
    assert lengths() == [[200], [500]]


class Scripted:
    """A pool whose jobs end with these codes, in turn, and this last line of their logs."""

    def __init__(self, *ends):
        self.ends = list(ends)

    def run(self, jobs, watch):
        while jobs:
            job = jobs.popleft()
            watch([job])
            code, line = self.ends.pop(0)
            job.log.parent.mkdir(parents=True, exist_ok=True)
            job.log.write_text(line)
            folder = job.log.with_suffix("")
            folder.mkdir(exist_ok=True)
            if code == 0:
                (folder / "summary.json").write_text("{}")
            yield job, code


def test_a_run_that_is_held_or_was_stopped_goes_on_and_one_that_failed_does_not(tmp_path, capsys):
    given = Options(("vae",), "8-gaussians", "images", 640, tmp_path, seeds=2)
    ends = [
        (2, "refused: --out x: is in use by process 1 on here; wait for it"),
        (1, "RuntimeError: of memory"),
        (75, "stopped"),
        (0, ""),
    ]
    comparison = Comparison(given, make_plan(given, data_of_options(given)), Scripted(*ends), lambda *shown: None)
    comparison.pilots()
    comparison.train()
    first, second = comparison.runs()
    assert first.finished() and second.outcome() == {"code": 1, "why": "RuntimeError: of memory", "refused": False}
    assert capsys.readouterr().err == "vae seed 1: failed: RuntimeError: of memory\n"


@pytest.mark.parametrize(
    ("device", "count", "visible", "names"),
    [
        ("auto", 2, None, ["0", "1"]),
        ("cuda", 2, "4,7", ["4", "7"]),
        ("cpu", 2, None, []),
        ("auto", 1, "4", []),
    ],
)
def test_several_gpus_are_dealt_and_one_is_left_as_it_is(monkeypatch, device, count, visible, names):
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpus(device) == names
